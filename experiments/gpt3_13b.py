"""GPT-3 13B, 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_13b
Slice     v5p:4x4x8 (128 chips), the state split 128 ways, rows split in eight.
Recipe    as gpt3_125m; 2M tokens a step, peak 1e-4, the batch rises over 8 billion tokens.
          Table 2.1 gives a width of 5,140 for 40 heads of 128; 5,120 is taken.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe("13b", rows=1024, peak=1e-4, ramp=8e9, mesh=Mesh(fsdp=16, sequence=8))
