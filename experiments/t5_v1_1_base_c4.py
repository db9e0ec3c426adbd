"""T5 v1.1 base, span corruption on C4 alone.

Command   python -m flaxlm.train --experiment t5_v1_1_base_c4
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    as t5_v1_1_small_c4.
"""

from dataclasses import replace

from experiments.t5_v1_1_small_c4 import experiment as small
from flaxlm.models import t5
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=t5.SIZES["v1_1_base"]),
    run=replace(small.run, accumulate=2),
    mesh=Mesh(data=64),
)
