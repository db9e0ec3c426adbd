"""T5 v1.1 xl, span corruption on C4 alone.

Command   python -m flaxlm.train --experiment t5_v1_1_xl_c4
Slice     v5p:4x4x8 (128 chips), fully sharded.
Recipe    as t5_v1_1_small_c4.
"""

from dataclasses import replace

from experiments.t5_v1_1_small_c4 import experiment as small
from flaxlm.models import t5
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=t5.SIZES["v1_1_xl"]),
    run=replace(small.run, accumulate=1),
    mesh=Mesh(data=1, fsdp=128),
)
