"""BART large (406M), denoising (Lewis et al. 2020, section 2).

Command   python -m flaxlm.train --experiment bart_large
Slice     v5e:8x8 (64 chips), the state split 4 ways.
Recipe    Paper: 8,000 rows, 500,000 steps; all sentences permuted, 30 % of the words in spans of
          mean length 3. From the arguments of the released models as others have passed them on:
          rows of 512 tokens out of one document, Adam (0.9, 0.999) with eps 1e-6, peak 4e-4 after
          10,000 steps, linear to 0, decay 0.01 on everything, clipping to norm 0.1, a tenth of the
          masks random pieces, and a mean length of 3.5 where the paper says 3
          (--objective.mean_length=3.5). The paper switches dropout off for the last tenth of the
          run: start another from its checkpoint for that.
Data      RoBERTa's 160 GB (books and Wikipedia 16, CC-News 76, OpenWebText 38, Stories 31) are not
          public as a whole. In the same shares stand in: TFDS wikipedia, c4/realnewslike,
          c4/webtextlike and c4/en. Byte-level BPE of 50,265 entries, trained on the data, or the
          published one by --data.vocabulary.path=FOLDER (vocab.json and merges.txt).
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import bart
from flaxlm.nn.compute import Compute
from flaxlm.objectives.denoising import Denoising
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=bart.Model(bart.SIZES["large"], Compute(dtype="bfloat16", remat="full")),
    objective=Denoising(permute=1.0, infill=0.3, mean_length=3.0, random=0.1),
    data=Data(
        sources=(
            Source("tfds:wikipedia/20230601.en", weight=16),
            Source("tfds:c4/realnewslike", weight=76),
            Source("tfds:c4/webtextlike", weight=38),
            Source("tfds:c4/en", weight=31),
        ),
        held_out=(Source("tfds:c4/webtextlike", split="validation"),),
        vocabulary=Vocabulary(size=50265, kind="bytes", sentinels=0),
        batch=8000,
        length=512,
        packing="sentences",
    ),
    optimizer=AdamW(
        Linear(peak=4e-4, warmup=10_000), clip=0.1, eps=1e-6, decay=0.01, decay_on="all"
    ),
    run=Run(
        steps=500_000,
        accumulate=5,
        log_every=100,
        eval_every=5_000,
        eval_batches=16,
        save_every=5_000,
    ),
    mesh=Mesh(data=16, fsdp=4),
)
