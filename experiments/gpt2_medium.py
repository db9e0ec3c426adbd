"""GPT-2 medium (355M), language modelling on web text.

Command   python -m flaxlm.train --experiment gpt2_medium
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    as gpt2; the rate, not published, is that of the GPT-3 of this size.
"""

from dataclasses import replace

from experiments.gpt2 import experiment as small
from flaxlm.models import gpt2
from flaxlm.optim import Cosine
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=gpt2.SIZES["medium"]),
    optimizer=replace(small.optimizer, schedule=Cosine(peak=3e-4, warmup=2000, end=3e-5)),
    mesh=Mesh(data=64),
)
