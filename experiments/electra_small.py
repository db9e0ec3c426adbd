"""ELECTRA small, replaced token detection (Clark et al. 2020, sections 2 and 3, appendix A).

Command   python -m flaxlm.train --experiment electra_small
Slice     v5e:2x4 (8 chips), data parallel.
Recipe    1M steps of 128 rows of 128 tokens; a generator of a quarter of the discriminator's width
          with as many layers; 15 % of the tokens, at most 19, are masked (85 % of those visibly),
          loss of the discriminator x 50. Adam without bias correction, peak 5e-4, linear to 0,
          multiplied by a warmup of 10,000 steps; decay 0.01, clipping to norm 1. The released
          checkpoint ("small++") has a full-width generator (size small_released), 512 tokens and
          4M steps.
Data      The original is English Wikipedia with BooksCorpus, which is not public: Wikipedia alone
          (TFDS). WordPiece vocabulary of 30,522, lower-cased: trained on the data, or the published
          one by --data.vocabulary.path=vocab.txt.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import electra
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import Halves
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.optim import AdamW, LinearFromStart
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=electra.Model(electra.SIZES["small"], Compute(dtype="bfloat16")),
    objective=ReplacedToken(masked=MaskedLM(slots=19, mask=0.85, random=0.0, pairs=Halves())),
    data=Data(
        sources=(Source("tfds:wikipedia/20230601.en"),),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=30522, kind="wordpiece", sentinels=0, lowercase=True),
        packing="sentences",
        batch=128,
        length=128,
    ),
    optimizer=AdamW(
        LinearFromStart(peak=5e-4, warmup=10_000, multiplied=True),
        eps=1e-6,
        decay=0.01,
        debias=False,
    ),
    run=Run(steps=1_000_000, log_every=100, eval_every=10_000, eval_batches=16, save_every=10_000),
    mesh=Mesh(data=8),
)
