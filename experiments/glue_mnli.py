"""BERT base on inference (MNLI) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_mnli
Recipe    Three epochs of 392,702 examples. The paper has on the test sets 84.6 and 83.4 %
          (matched and mismatched).
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    model=replace(recipe.model, classes=3),
    objective=replace(recipe.objective, classes=3),
    data=replace(
        recipe.data,
        sources=(Source("task:glue/mnli"),),
        held_out=(
            Source("task:glue/mnli", split="validation"),
            Source("task:glue/mnli_mismatched", split="validation"),
        ),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=3681)),
    run=replace(
        recipe.run,
        steps=36816,
        eval_every=12272,
        save_every=12272,
        keep_best="max glue/mnli:accuracy",
    ),
)
