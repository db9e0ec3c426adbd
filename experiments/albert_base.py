"""ALBERT base (12M), masked n-grams and sentence order (Lan et al. 2020, sections 3.1 and 4.1).

Command   python -m flaxlm.train --experiment albert_base
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    125,000 steps of 4,096 rows of 512 tokens. 15 % of the tokens, at most 20 of a row as the
          published command says (--objective.slots=77 lets 15 % be 15 %), in n-grams of up to 3
          words, n with probability 1/n; two texts in their order or swapped. LAMB without bias
          correction, peak 0.00176, linear to 0 from the first step on, replaced by a warmup of
          3,125 steps; decay 0.01; clipping to norm 1; dropout 0.1. The second release (sizes *_v2)
          has no dropout, more data and 10M steps (base) or 3M.
Data      The original is English Wikipedia with BooksCorpus, which is not public: Wikipedia alone
          (TFDS). Unigram vocabulary of 30,000, lower-cased: trained on the data, or the published
          one by --data.vocabulary.path=spiece.model.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import albert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import SentenceOrder
from flaxlm.objectives.units import Ngrams
from flaxlm.optim import Lamb, LinearFromStart
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=albert.Model(albert.SIZES["base"], Compute(dtype="bfloat16", remat="full")),
    objective=MaskedLM(rate=0.15, slots=20, units=Ngrams(longest=3), pairs=SentenceOrder()),
    data=Data(
        sources=(Source("tfds:wikipedia/20230601.en"),),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=30000, kind="unigram", sentinels=0, lowercase=True),
        packing="sentences",
        batch=4096,
        length=512,
    ),
    optimizer=Lamb(LinearFromStart(peak=0.00176, warmup=3125), decay=0.01, debias=False),
    run=Run(steps=125_000, log_every=100, eval_every=5_000, eval_batches=16, save_every=5_000),
    mesh=Mesh(data=64),
)
