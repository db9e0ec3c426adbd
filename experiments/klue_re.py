"""BERT base on relations of two entities (RE) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_re
Recipe    Three epochs of 32,470 examples, rows of 256 tokens. The entities stand between marks in
          the text, <subj> </subj> and <obj> </obj>, which are cut into pieces like any text; the
          baseline adds the four to its vocabulary. The paper has on the test set 66.44 (micro F1
          without no_relation) and 66.17 (area under precision and recall).
"""

from dataclasses import replace

from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.optim import Linear

FOLDER = "task:klue/re@data/klue"

experiment = replace(
    recipe,
    model=replace(recipe.model, classes=30),
    objective=replace(recipe.objective, classes=30),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        length=256,
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=5e-5, warmup=304)),
    run=replace(recipe.run, steps=3044, eval_every=1015, save_every=1015, keep_best="max micro_f1"),
)
