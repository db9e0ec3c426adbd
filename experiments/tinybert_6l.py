"""TinyBERT of 6 layers, general distillation from BERT base (Jiao et al. 2020, sections 3 and 4).

Command   python -m flaxlm.train --experiment tinybert_6l
Slice     v5e:2x4 (8 chips), data parallel.
Recipe    As tinybert_4l, with BERT's width: every second layer of the teacher.
"""

from dataclasses import replace

from experiments.tinybert_4l import compute
from experiments.tinybert_4l import experiment as smaller
from flaxlm.models import tinybert

experiment = replace(smaller, model=tinybert.Model(tinybert.SIZES["6l"], compute))
