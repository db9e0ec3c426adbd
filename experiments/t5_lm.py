"""A decoder-only stack of T5 layers trained as a plain language model, on the text of t5_span.

Command   python -m flaxlm.train --experiment t5_lm
Source    Raffel et al. 2020, section 3.2.1: the "language model" architecture.
"""

from dataclasses import replace

from experiments.t5_span import experiment as span
from flaxlm.models import t5
from flaxlm.objectives.causal_lm import CausalLM

experiment = replace(
    span,
    model=t5.LanguageModel(span.model.size, span.model.compute),
    objective=CausalLM(z_loss=1e-4),
)
