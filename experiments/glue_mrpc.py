"""BERT base on paraphrases (MRPC) of GLUE, as `glue_sst2`.

Command   python -m flaxlm.train --experiment glue_mrpc
Recipe    Three epochs of 3,668 examples. The paper has on the test set 88.9 (F1).
"""

from dataclasses import replace

from experiments.glue_sst2 import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

experiment = replace(
    recipe,
    data=replace(
        recipe.data,
        sources=(Source("task:glue/mrpc"),),
        held_out=(Source("task:glue/mrpc", split="validation"),),
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=2e-5, warmup=34)),
    run=replace(recipe.run, steps=345, eval_every=115, save_every=115, keep_best="max f1"),
)
