"""tiny_albert with parameters of its own for every layer, for docs/compare.md.

Command   python -m flaxlm.train --experiment benchmarks/claims/unshared.py
"""

from dataclasses import replace

from experiments.tiny_albert import experiment as base
from flaxlm.models import albert

experiment = replace(base, model=base.model.clone(sharing=albert.NONE))
