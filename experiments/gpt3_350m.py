"""GPT-3 medium (350M), 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_350m
Slice     v5e:4x8 (32 chips), data parallel, rows split in two.
Recipe    as gpt3_125m; 0.5M tokens a step, peak 3e-4, the batch rises over 4 billion tokens.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe("350m", rows=256, peak=3e-4, ramp=4e9, mesh=Mesh(data=16, sequence=2))
