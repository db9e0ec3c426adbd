"""Which of four endings goes on (SWAG, Zellers et al. 2018), from `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_swag
Hardware  2 CPU cores, for a short try; train.csv and val.csv lie in data/swag, or wherever
          --data.sources.0.uri and --data.held_out.0.uri say. CommonsenseQA is the same with
          task:choice/commonsenseqa and --objective.choices=5.
"""

from dataclasses import replace

from experiments.tune_polarity import SIZE
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.multiple_choice import MultipleChoice

FOLDER = "task:choice/swag@data/swag"

experiment = replace(
    recipe,
    model=bert.Chooser(bert.Encoder(SIZE, Compute(scan=False))),
    objective=MultipleChoice(choices=4),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        batch=16,
    ),
    run=replace(recipe.run, steps=2000, eval_every=500, save_every=500),
)
