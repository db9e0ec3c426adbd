"""tiny_bert with sentence order in the place of next sentence, for docs/compare.md.

Command   python -m flaxlm.train --experiment benchmarks/claims/sentence_order.py
"""

from dataclasses import replace

from experiments.tiny_bert import experiment as base
from flaxlm.objectives.pairs import SentenceOrder

experiment = replace(base, objective=replace(base.objective, pairs=SentenceOrder()))
