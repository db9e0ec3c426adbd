"""GPT-3 175B, 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_175b
Slice     v5p:8x16x16 (2048 chips), the state split 128 ways, rows split 16 ways.
Recipe    as gpt3_125m; 3.2M tokens a step, peak 6e-5, the batch rises over 12 billion tokens.
          1,536 rows are 3.15M tokens, the nearest to 3.2M that splits well. Splitting rows
          over devices keeps 16 of them, the first batch, enough for 2,048 chips.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe(
    "175b", rows=1536, peak=6e-5, ramp=12e9, mesh=Mesh(fsdp=16, tensor=8, sequence=16)
)
