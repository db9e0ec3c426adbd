"""ALBERT xxlarge (235M), masked n-grams and sentence order (Lan et al. 2020, table 1).

Command   python -m flaxlm.train --experiment albert_xxlarge
Slice     v5e:16x16 (256 chips), data parallel.
Recipe    as albert_base, without dropout; the released one had 1.5M steps (--run.steps=1500000).
"""

from dataclasses import replace

from experiments.albert_base import experiment as base
from flaxlm.models import albert
from flaxlm.sharding import Mesh

experiment = replace(
    base,
    model=base.model.clone(size=albert.SIZES["xxlarge"]),
    run=replace(base.run, accumulate=2),
    mesh=Mesh(data=256),
)
