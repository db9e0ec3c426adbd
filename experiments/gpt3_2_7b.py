"""GPT-3 2.7B, 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_2_7b
Slice     v5p:4x4x4 (64 chips), the state split 64 ways, rows split in four.
Recipe    as gpt3_125m; 1M tokens a step, peak 1.6e-4, the batch rises over 6 billion tokens.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe("2_7b", rows=512, peak=1.6e-4, ramp=6e9, mesh=Mesh(fsdp=16, sequence=4))
