"""Whether one sentence follows from another (MED, Yanaka et al. 2019), from `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_nli
Hardware  2 CPU cores. The file MED.tsv lies in data/med, or wherever --data.sources.0.uri and
          --data.held_out.0.uri say.
"""

from dataclasses import replace

from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source

FOLDER = "task:nli/med@data/med"

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source(FOLDER, split="train[:90%]"),),
        held_out=(Source(FOLDER, split="train[90%:]"),),
    ),
    run=replace(recipe.run, steps=495, eval_every=99, save_every=99),
)
