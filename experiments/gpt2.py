"""GPT-2 small (124M), language modelling on web text (Radford et al. 2019, section 2).

Command   python -m flaxlm.train --experiment gpt2
Slice     v5e:4x8 (32 chips), data parallel.
Recipe    Published: 512 rows of 1,024 tokens, a learning rate tuned per size. Not published:
          optimizer, schedule, steps. These are nanoGPT's for its reproduction: AdamW (0.9, 0.95),
          peak 6e-4 after 2,000 steps, half a cosine to 6e-5 over 600,000 steps, decay 0.1 on
          matrices, clipping to norm 1. Dropout 0.1 is transformers' configuration of the released
          model (nanoGPT: --model.size.dropout=0).
Data      WebText (8M pages, 40 GB) is not public; TFDS c4/webtextlike, C4 kept to the pages that
          OpenWebText links, stands in. Byte-level BPE of 50,257 entries: trained on the data, or
          the published one by --data.vocabulary.path=FOLDER (vocab.json and merges.txt).
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import gpt2
from flaxlm.nn.compute import Compute
from flaxlm.objectives.causal_lm import StreamLM
from flaxlm.optim import AdamW, Cosine
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=gpt2.Model(gpt2.SIZES["small"], Compute(dtype="bfloat16", remat="full")),
    objective=StreamLM(),
    data=Data(
        sources=(Source("tfds:c4/webtextlike"),),
        held_out=(Source("tfds:c4/webtextlike", split="validation"),),
        vocabulary=Vocabulary(size=50257, kind="bytes", sentinels=0),
        batch=512,
        length=1024,
    ),
    optimizer=AdamW(Cosine(peak=6e-4, warmup=2000, end=6e-5), b2=0.95, decay=0.1),
    run=Run(steps=600_000, log_every=100, eval_every=5_000, eval_batches=16, save_every=5_000),
    mesh=Mesh(data=32),
)
