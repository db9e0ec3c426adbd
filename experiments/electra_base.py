"""ELECTRA base, replaced token detection (Clark et al. 2020, appendix A).

Command   python -m flaxlm.train --experiment electra_base
Slice     v5e:4x8 (32 chips), data parallel.
Recipe    766,000 steps of 256 rows of 512 tokens, peak 2e-4; a generator of a third of the width;
          at most 79 masked tokens. The released checkpoint ("base++") saw XLNet's data for 1M
          steps.
"""

from dataclasses import replace

from experiments.electra_small import experiment as small
from flaxlm.models import electra
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import Halves
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.sharding import Mesh

experiment = replace(
    small,
    model=electra.Model(electra.SIZES["base"], Compute(dtype="bfloat16", remat="full")),
    objective=ReplacedToken(masked=MaskedLM(slots=79, mask=0.85, random=0.0, pairs=Halves())),
    data=replace(small.data, batch=256, length=512),
    optimizer=replace(small.optimizer, schedule=replace(small.optimizer.schedule, peak=2e-4)),
    run=replace(small.run, steps=766_000),
    mesh=Mesh(data=32),
)
