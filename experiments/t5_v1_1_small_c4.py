"""T5 v1.1 small, span corruption on C4 alone: gated GELU, untied readout, no dropout (Shazeer 2020;
T5 release notes).

Command   python -m flaxlm.train --experiment t5_v1_1_small_c4
Slice     v5e:4x4 (16 chips), data parallel.
Recipe    as t5_small_c4; no supervised tasks were mixed in, so this is the whole of it. Dropout is
switched on again
          for fine-tuning (--model.size.dropout=0.1).
"""

from dataclasses import replace

from experiments.t5_small_c4 import experiment as v1_0
from flaxlm.models import t5

experiment = replace(v1_0, model=t5.Model(t5.SIZES["v1_1_small"], v1_0.model.compute))
