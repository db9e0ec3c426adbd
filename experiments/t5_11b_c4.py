"""T5 v1.0 11B, span corruption on C4.

Command   python -m flaxlm.train --experiment t5_11b_c4
Slice     v5p:8x8x8 (512 chips), fully sharded over 256, 2 replicas.
Recipe    as t5_small_c4.
"""

from dataclasses import replace

from experiments.t5_small_c4 import experiment as small
from flaxlm.models import t5
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=t5.SIZES["11b"]),
    run=replace(small.run, accumulate=1),
    mesh=Mesh(data=2, fsdp=256),
)
