"""BERT base on inference on little data (RTE) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_rte
Recipe    Three epochs of 2,490 examples. The paper has on the test set 66.4 %.
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/rte"),),
        held_out=(Source("task:glue/rte", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=23)),
    run=replace(recipe.run, steps=234, eval_every=78, save_every=78),
)
