"""Entities in tweets and posts (WNUT-17, Derczynski et al. 2017), from `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_ner
Hardware  2 CPU cores. The files wnut17train.conll and emerging.dev.conll lie in data/wnut17, or
          wherever --data.sources.0.uri and --data.held_out.0.uri say.
"""

from dataclasses import replace

from experiments.tune_polarity import SIZE
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.experiment import Restore
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.tagging import Tagging

FOLDER = "task:ner/wnut17@data/wnut17"

experiment = replace(
    recipe,
    model=bert.Tagger(bert.Body(SIZE, Compute(scan=False)), classes=13),
    objective=Tagging(tags=13),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
    ),
    run=replace(recipe.run, steps=1060, eval_every=212, save_every=212, keep_best="max f1"),
    start=(Restore("runs/tiny_bert", into="encoder", without=("head", "pair", "pooler")),),
)
