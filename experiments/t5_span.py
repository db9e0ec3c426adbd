"""A small T5 v1.1, span corruption on the English that ships with Python: minutes on a laptop, no
download.

Command   python -m flaxlm.train --experiment t5_span
"""

from dataclasses import replace

from experiments.t5_v1_1_small_c4 import experiment as recipe
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Run
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.optim import AdamW, Cosine
from flaxlm.sharding import Mesh

experiment = replace(
    recipe,
    model=t5.Model(
        t5.Size(depth=3, width=192, mlp=384, heads=4, head_dim=48, vocab=2176, dropout=0.0),
        Compute(scan=False),
    ),
    data=Data(
        sources=(Source("embedded:english"),),
        vocabulary=Vocabulary(size=2048),
        held_out_share=0.06,
        batch=32,
        length=128,
    ),
    optimizer=AdamW(Cosine(peak=3e-3, warmup=100), decay=0.01),
    run=Run(steps=1500, log_every=20, eval_every=500, save_every=500),
    mesh=Mesh(),
)
