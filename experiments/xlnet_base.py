"""XLNet base (117M), permutation language modelling with memory (Yang et al. 2019, section 3.1 and
appendix A.4).

Command   python -m flaxlm.train --experiment xlnet_base
Slice     v5e:16x16 (256 chips), data parallel.
Recipe    500,000 steps of 8,192 rows of 512 tokens, of which each goes on 256 tokens after the one
          before and sees a memory of 384. 85 tokens predicted per row: spans of 1 to 5 pieces with
          six times as many around them, in random orders of 256. Adam without bias correction, peak
          4e-4 after 40,000 steps, linear to 0, decay 0.01, eps 1e-6, clipping to norm 1; dropout
          0.1. (The published command line has 2,048 rows: --data.batch=2048.) The published run
          also reads half of its rows backwards; here all are read forwards.
Data      BooksCorpus and English Wikipedia (13 GB), Giga5, ClueWeb 2012-B and Common Crawl: 32.9B
          pieces, which are not public as used. TFDS wikipedia and c4/en stand in, one to nine as
          their text was. Vocabulary: 32,000 cased unigram pieces.
"""

from dataclasses import replace

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import xlnet
from flaxlm.nn.compute import Compute
from flaxlm.objectives.permutation_lm import PermutationLM
from flaxlm.optim import AdamW
from flaxlm.schedules import Linear
from flaxlm.sharding import Mesh

REUSE = 256

experiment = Experiment(
    model=xlnet.TwoStreamModel(
        replace(xlnet.SIZES["base"], memory=384, reuse=REUSE),
        Compute(dtype="bfloat16", remat="full"),
    ),
    objective=PermutationLM(predicted=85, reuse=REUSE, shuffled=256, alpha=6, beta=1, longest=5),
    data=Data(
        sources=(
            Source("tfds:wikipedia/20230601.en", weight=0.1),
            Source("tfds:c4/en", weight=0.9),
        ),
        held_out=(Source("tfds:c4/en", split="validation"),),
        vocabulary=Vocabulary(size=32000, kind="unigram", sentinels=0),
        batch=8192,
        length=512,
        packing="continue",
    ),
    optimizer=AdamW(Linear(peak=4e-4, warmup=40_000), eps=1e-6, debias=False, decay=0.01),
    run=Run(
        steps=500_000,
        accumulate=2,
        log_every=100,
        eval_every=10_000,
        eval_batches=4,
        save_every=5_000,
    ),
    mesh=Mesh(data=256),
)
