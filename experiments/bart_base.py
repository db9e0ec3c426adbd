"""BART base (139M), denoising (Lewis et al. 2020, section 2).

Command   python -m flaxlm.train --experiment bart_base
Slice     v5e:8x8 (64 chips), data parallel.
Recipe    as bart_large; that the base model had the same is an assumption.
"""

from dataclasses import replace

from experiments.bart_large import experiment as large
from flaxlm.models import bart
from flaxlm.sharding import Mesh

experiment = replace(large, model=large.model.clone(size=bart.SIZES["base"]), mesh=Mesh(data=64))
