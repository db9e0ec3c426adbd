"""GPT-2 xl (1.5B), language modelling on web text.

Command   python -m flaxlm.train --experiment gpt2_xl
Slice     v5e:8x16 (128 chips), the state split 16 ways.
Recipe    as gpt2; the rate, not published, is that of the GPT-3 of this size.
"""

from dataclasses import replace

from experiments.gpt2 import experiment as small
from flaxlm.models import gpt2
from flaxlm.optim import Cosine
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=gpt2.SIZES["xl"]),
    optimizer=replace(small.optimizer, schedule=Cosine(peak=2e-4, warmup=2000, end=2e-5)),
    mesh=Mesh(data=8, fsdp=16),
)
