"""BERT base on inference (NLI) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_nli
Recipe    Five epochs of 24,998 examples. The paper has on the test set 81.63 %.
"""

from dataclasses import replace

from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

FOLDER = "task:klue/nli@data/klue"

experiment = replace(
    recipe,
    model=replace(recipe.model, classes=3),
    objective=replace(recipe.objective, classes=3),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=5e-5, warmup=391)),
    run=replace(recipe.run, steps=3906, eval_every=782, save_every=782, keep_best="max accuracy"),
)
