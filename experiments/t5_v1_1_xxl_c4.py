"""T5 v1.1 xxl, span corruption on C4 alone.

Command   python -m flaxlm.train --experiment t5_v1_1_xxl_c4
Slice     v5p:8x8x8 (512 chips), fully sharded over 256, 2 replicas.
Recipe    as t5_v1_1_small_c4.
"""

from dataclasses import replace

from experiments.t5_v1_1_small_c4 import experiment as small
from flaxlm.models import t5
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=t5.SIZES["v1_1_xxl"]),
    run=replace(small.run, accumulate=1),
    mesh=Mesh(data=2, fsdp=256),
)
