"""BERT base on acceptability of sentences (CoLA) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_cola
Recipe    Three epochs of 8,551 examples. The paper has on the test set 52.1 (Matthews correlation).
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/cola"),),
        held_out=(Source("task:glue/cola", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=80)),
    run=replace(recipe.run, steps=804, eval_every=268, save_every=268, keep_best="max matthews"),
)
