"""BERT base on answers to questions (QNLI) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_qnli
Recipe    Three epochs of 104,743 examples. The paper has on the test set 90.5 %.
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/qnli"),),
        held_out=(Source("task:glue/qnli", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=982)),
    run=replace(recipe.run, steps=9822, eval_every=3274, save_every=3274),
)
