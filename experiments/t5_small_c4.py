"""T5 v1.0 small, span corruption on C4 (Raffel et al. 2020, sections 3.1 and 3.7; unsupervised part
of the mixture).

Command   python -m flaxlm.train --experiment t5_small_c4
Slice     v5e:4x4 (16 chips), data parallel.
Recipe    2^20 steps of 2048 rows of 512 + 114 tokens, about 1.3T tokens in all. Adafactor with the
inverse square root
          rate 1 / sqrt(max(step, 10^4)); dropout 0.1; z-loss 1e-4. The paper's baseline study is
          this with --run.steps=524288 --data.batch=128. The released v1.0 checkpoints also mix the
          supervised tasks in.
Data      TFDS c4/en, read as array_record; a first `python -m flaxlm.data prepare` makes the
corpus. Vocabulary 32,000 unigram pieces and 100 sentinels; the embedding has 32,128 rows.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.optim import Adafactor, InverseSquareRoot
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=t5.ModelV10(t5.SIZES["small"], Compute(dtype="bfloat16", remat="full")),
    objective=SpanCorruption(rate=0.15, mean_length=3.0, z_loss=1e-4),
    data=Data(
        sources=(Source("tfds:c4/en"),),
        held_out=(Source("tfds:c4/en", split="validation"),),
        vocabulary=Vocabulary(size=32000, kind="unigram"),
        batch=2048,
        length=512,
    ),
    optimizer=Adafactor(InverseSquareRoot(scale=1.0, warmup=10_000)),
    run=Run(
        steps=2**20,
        accumulate=4,
        log_every=100,
        eval_every=10_000,
        eval_batches=16,
        save_every=5_000,
    ),
    mesh=Mesh(data=16),
)
