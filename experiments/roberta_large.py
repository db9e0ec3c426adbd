"""RoBERTa large (355M), masked tokens (Liu et al. 2019, table 9).

Command   python -m flaxlm.train --experiment roberta_large
Slice     v5e:16x16 (256 chips), data parallel.
Recipe    as roberta_base, with peak 4e-4 after 30,000 steps.
"""

from dataclasses import replace

from experiments.roberta_base import experiment as base
from flaxlm.models import roberta
from flaxlm.optim import Linear

experiment = replace(
    base,
    model=base.model.clone(size=roberta.SIZES["large"]),
    optimizer=replace(base.optimizer, schedule=Linear(peak=4e-4, warmup=30_000)),
    run=replace(base.run, accumulate=2),
)
