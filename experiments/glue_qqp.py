"""BERT base on duplicate questions (QQP) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_qqp
Recipe    Three epochs of 363,846 examples. The paper has on the test set 71.2 (F1).
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/qqp"),),
        held_out=(Source("task:glue/qqp", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=3411)),
    run=replace(recipe.run, steps=34113, eval_every=11371, save_every=11371, keep_best="max f1"),
)
