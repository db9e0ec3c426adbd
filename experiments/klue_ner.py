"""BERT base on names of six kinds (NER) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_ner
Recipe    Three epochs of 21,008 examples, rows of 510 tokens, no warmup. The paper has on the test
          set 84.77 (F1 of entities) and 91.28 (F1 of characters).
"""

from dataclasses import replace

from experiments.klue_ynat import BODY, START
from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.models import bert
from flaxlm.objectives.tagging import Tagging
from flaxlm.optim import Linear

FOLDER = "task:klue/ner@data/klue"

experiment = replace(
    recipe,
    model=bert.Tagger(BODY, classes=13),
    objective=Tagging(tags=13, stride=128),
    start=START,
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        length=510,
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=5e-5)),
    run=replace(
        recipe.run, steps=1970, eval_every=657, save_every=657, keep_best="max entity_macro_f1"
    ),
)
