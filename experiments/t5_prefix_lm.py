"""The encoder-decoder of t5_span trained on T5's prefix LM: read the first part of a text, predict
the rest.

Command   python -m flaxlm.train --experiment t5_prefix_lm
Source    Raffel et al. 2020, section 3.2.3: the objective that span corruption is compared with.
"""

from dataclasses import replace

from experiments.t5_span import experiment as span
from flaxlm.objectives.prefix_lm import PrefixLM

experiment = replace(span, objective=PrefixLM(z_loss=1e-4))
