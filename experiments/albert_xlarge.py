"""ALBERT xlarge (60M), masked n-grams and sentence order (Lan et al. 2020, table 1).

Command   python -m flaxlm.train --experiment albert_xlarge
Slice     v5e:16x16 (256 chips), data parallel.
Recipe    as albert_base.
"""

from dataclasses import replace

from experiments.albert_base import experiment as base
from flaxlm.models import albert
from flaxlm.sharding import Mesh

experiment = replace(
    base,
    model=base.model.clone(size=albert.SIZES["xlarge"]),
    run=replace(base.run, accumulate=1),
    mesh=Mesh(data=256),
)
