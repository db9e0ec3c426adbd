"""How alike two sentences are, from 0 to 5 (STS-B as in GLUE), from `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_sts
Hardware  2 CPU cores. The data set glue/stsb of TFDS is prepared, or --data.sources.0.uri and
          --data.held_out.0.uri name a folder with its files. KorSTS is task:korean/korsts@FOLDER.
"""

from dataclasses import replace

from experiments.tune_polarity import SIZE
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Regression

experiment = replace(
    recipe,
    model=bert.Classifier(bert.Encoder(SIZE, Compute(scan=False)), classes=1),
    objective=Regression(),
    data=replace(
        recipe.data,
        sources=(Source("task:glue/stsb"),),
        held_out=(Source("task:glue/stsb", split="validation"),),
    ),
    run=replace(recipe.run, steps=900, eval_every=180, save_every=180, keep_best="max spearman"),
)
