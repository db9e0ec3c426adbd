"""GPT-3 XL (1.3B), 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_1_3b
Slice     v5p:2x4x4 (32 chips), the state split 32 ways, rows in two.
Recipe    as gpt3_125m; 1M tokens a step, peak 2e-4, the batch rises over 6 billion tokens.
          Table 2.1 gives 24 heads of 128 for a width of 2,048; 16 are taken.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe("1_3b", rows=512, peak=2e-4, ramp=6e9, mesh=Mesh(fsdp=16, sequence=2))
