"""BERT base on similarity of sentences (STS) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_sts
Recipe    Four epochs of 11,668 examples. The paper has on the test set 90.85 (Pearson correlation)
          and 82.84 (F1).
"""

from dataclasses import replace

from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.objectives.classification import Regression
from flaxlm.optim import Linear

FOLDER = "task:klue/sts@data/klue"

experiment = replace(
    recipe,
    model=replace(recipe.model, classes=1),
    objective=Regression(),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=5e-5, warmup=146)),
    run=replace(recipe.run, steps=1459, eval_every=365, save_every=365, keep_best="max pearson"),
)
