"""GPT-2 large (774M), language modelling on web text.

Command   python -m flaxlm.train --experiment gpt2_large
Slice     v5e:8x16 (128 chips), the state split 8 ways.
Recipe    as gpt2; the rate, not published, is that of the GPT-3 of this size.
"""

from dataclasses import replace

from experiments.gpt2 import experiment as small
from flaxlm.models import gpt2
from flaxlm.optim import Cosine
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=gpt2.SIZES["large"]),
    optimizer=replace(small.optimizer, schedule=Cosine(peak=2.5e-4, warmup=2000, end=2.5e-5)),
    mesh=Mesh(data=16, fsdp=8),
)
