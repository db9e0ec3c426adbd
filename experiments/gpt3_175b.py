"""GPT-3 175B, 300 billion tokens.

Command   python -m flaxlm.train --experiment gpt3_175b
Slice     v5p:8x8x8 (512 chips), the state split 512 ways, rows split 32 ways.
Wider     v5p:16x16x16 (4096 chips): --mesh.fsdp=128 --data.batch=128
Recipe    as gpt3_125m; 3.2M tokens a step, peak 6e-5, the batch rises over 12 billion tokens.
          1,536 rows are 3.15M tokens, the nearest to 3.2M that splits well. The 16 rows of the
          first batch, split 32 ways, are enough for 512 chips; 4,096 need a first batch of 128.
"""

from experiments.gpt3_125m import recipe
from flaxlm.sharding import Mesh

experiment = recipe(
    "175b",
    rows=1536,
    peak=6e-5,
    ramp=12e9,
    mesh=Mesh(fsdp=16, sequence=32),
    remat="full",
    multiple=128,
)
