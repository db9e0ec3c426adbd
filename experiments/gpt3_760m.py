"""GPT-3 large (760M), 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_760m
Slice     v5e:4x8 (32 chips), the state split 32 ways, rows split in two.
Recipe    as gpt3_125m; 0.5M tokens a step, peak 2.5e-4, the batch rises over 4 billion tokens.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe("760m", rows=256, peak=2.5e-4, ramp=4e9, mesh=Mesh(fsdp=16, sequence=2))
