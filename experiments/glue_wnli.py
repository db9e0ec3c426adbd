"""BERT base on pronouns (WNLI) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_wnli
Recipe    Three epochs of 635 examples. The paper leaves this task out: its validation set is made
          so that what is learned from the training set misleads.
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/wnli"),),
        held_out=(Source("task:glue/wnli", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=6)),
    run=replace(recipe.run, steps=60, eval_every=20, save_every=20),
)
