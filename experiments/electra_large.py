"""ELECTRA large, replaced token detection (Clark et al. 2020, appendix A).

Command   python -m flaxlm.train --experiment electra_large
Slice     v5p:4x4x4 (64 chips), data parallel, state split over 8.
Recipe    400,000 steps of 2,048 rows of 512 tokens, peak 2e-4; a generator of a quarter of the
          width; 25 % of the tokens, at most 130, are masked. The released checkpoint was trained
          for 1.75M steps, on XLNet's data.
"""

from dataclasses import replace

from experiments.electra_base import experiment as base
from flaxlm.models import electra
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import Halves
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.sharding import Mesh

experiment = replace(
    base,
    model=electra.Model(electra.SIZES["large"], Compute(dtype="bfloat16", remat="full")),
    objective=ReplacedToken(
        masked=MaskedLM(rate=0.25, slots=130, mask=0.85, random=0.0, pairs=Halves())
    ),
    data=replace(base.data, batch=2048),
    run=replace(base.run, steps=400_000),
    mesh=Mesh(data=8, fsdp=8),
)
