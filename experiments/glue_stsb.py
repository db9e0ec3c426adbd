"""BERT base on similarity of sentences (STS-B) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_stsb
Recipe    Three epochs of 5,749 examples. The paper has on the test set 85.8 (Spearman correlation).
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.objectives.classification import Regression
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    model=replace(recipe.model, classes=1),
    objective=Regression(),
    data=replace(
        recipe.data,
        sources=(Source("task:glue/stsb"),),
        held_out=(Source("task:glue/stsb", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=54)),
    run=replace(recipe.run, steps=540, eval_every=180, save_every=180, keep_best="max spearman"),
)
