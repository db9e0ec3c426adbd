"""T5 v1.0 large (770M), span corruption on C4.

Command   python -m flaxlm.train --experiment t5_large_c4
Slice     v5e:16x16 (256 chips), data x fsdp.
Recipe    as t5_small_c4.
"""

from dataclasses import replace

from experiments.t5_small_c4 import experiment as small
from flaxlm.models import t5
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=small.model.clone(size=t5.SIZES["large"]),
    run=replace(small.run, accumulate=1),
    mesh=Mesh(data=16, fsdp=16),
)
