"""ALBERT large (18M), masked n-grams and sentence order (Lan et al. 2020, table 1).

Command   python -m flaxlm.train --experiment albert_large
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    as albert_base.
"""

from dataclasses import replace

from experiments.albert_base import experiment as base
from flaxlm.models import albert
from flaxlm.sharding import Mesh

experiment = replace(
    base,
    model=base.model.clone(size=albert.SIZES["large"]),
    run=replace(base.run, accumulate=2),
    mesh=Mesh(data=64),
)
