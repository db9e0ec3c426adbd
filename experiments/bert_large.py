"""BERT large (340M), masked tokens and next sentences (Devlin et al. 2019).

Command   python -m flaxlm.train --experiment bert_large
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    as bert_base.
"""

from dataclasses import replace

from experiments.bert_base import experiment as base
from flaxlm.models import bert
from flaxlm.sharding import Mesh

experiment = replace(
    base, model=base.model.clone(size=bert.SIZES["large_uncased"]), mesh=Mesh(data=64)
)
