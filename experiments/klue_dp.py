"""BERT base on dependency arcs (DP) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_dp
Recipe    Ten epochs of 10,000 examples, rows of 256 tokens. The head is the baseline's: parts of
          speech, LSTMs of width 768, biaffine scores. The paper has on the test set 92.14 (UAS,
          macro F1) and 87.77 (LAS, macro F1).
"""

from dataclasses import replace

from experiments.klue_ynat import BODY, START
from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.models import bert
from flaxlm.objectives.arcs import DependencyArcs
from flaxlm.optim import Linear

FOLDER = "task:klue/dp@data/klue"

experiment = replace(
    recipe,
    model=bert.Parser(BODY, classes=38, tags=45),
    objective=DependencyArcs(relations=38, words=95),
    start=START,
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        length=256,
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=5e-5, warmup=313)),
    run=replace(
        recipe.run, steps=3125, eval_every=313, save_every=313, keep_best="max las_macro_f1"
    ),
)
