"""RoBERTa base (125M), masked tokens (Liu et al. 2019, sections 3 to 5, table 9).

Command   python -m flaxlm.train --experiment roberta_base
Slice     v5e:16x16 (256 chips), data parallel.
Recipe    500,000 steps of 8,192 rows of 512 tokens, new masks every time, <s> and </s> may be
          masked too, random ids leave out the first four. AdamW (0.9, 0.98) with decay 0.01 on all
          parameters, norms and biases too; peak 6e-4 after 24,000 steps, linear to 0; no clipping;
          dropout 0.1. fairseq's recipe for its users is smaller: --run.steps=125000
          --data.batch=2048 --optimizer.schedule.peak=5e-4 --optimizer.schedule.warmup=10000.
Data      Full sentences across documents. The original 160 GB are books and Wikipedia (16 GB),
          CC-News (76), OpenWebText (38) and Stories (31), mostly not public: Wikipedia and C4 kept
          to news and to pages that OpenWebText links stand in (TFDS), without Stories. Byte-level
          BPE of 50,265 entries, trained on the data.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import roberta
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.units import Tokens
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=roberta.Model(roberta.SIZES["base"], Compute(dtype="bfloat16", remat="full")),
    objective=MaskedLM(
        rate=0.15, slots=77, units=Tokens(specials=True), dither=True, random_from=4
    ),
    data=Data(
        sources=(
            Source("tfds:wikipedia/20230601.en", weight=16),
            Source("tfds:c4/realnewslike", weight=76),
            Source("tfds:c4/webtextlike", weight=38),
        ),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=50265, kind="bytes", sentinels=0),
        packing="full_sentences",
        batch=8192,
        length=512,
    ),
    optimizer=AdamW(
        Linear(peak=6e-4, warmup=24_000),
        b2=0.98,
        eps=1e-6,
        decay=0.01,
        decay_on="all",
        clip=0.0,
    ),
    run=Run(steps=500_000, log_every=100, eval_every=5_000, eval_batches=16, save_every=5_000),
    mesh=Mesh(data=256),
)
