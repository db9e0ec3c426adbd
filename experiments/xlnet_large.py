"""XLNet large (360M), permutation language modelling with memory.

Command   python -m flaxlm.train --experiment xlnet_large
Slice     v5e:16x16 (256 chips), data parallel, parameters over four chips each.
Recipe    as xlnet_base; the paper's own run, 5.5 days on 512 TPU v3 chips (section 3.1).
"""

from dataclasses import replace

from experiments.xlnet_base import REUSE
from experiments.xlnet_base import experiment as base
from flaxlm.models import xlnet
from flaxlm.sharding import Mesh

experiment = replace(
    base,
    model=base.model.clone(size=replace(xlnet.SIZES["large"], memory=384, reuse=REUSE)),
    run=replace(base.run, accumulate=8),
    mesh=Mesh(data=64, fsdp=4),
)
