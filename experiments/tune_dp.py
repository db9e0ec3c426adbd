"""Dependency arcs of Korean sentences (KLUE-DP, Park et al. 2021), from `tiny_bert_ko`.

Command   python -m flaxlm.train --experiment tiny_bert_ko --data.sources.0.uri=text:FILE
          python -m flaxlm.train --experiment tune_dp
Hardware  2 CPU cores. The files klue-dp-v1.1_train.tsv and klue-dp-v1.1_dev.tsv lie in data/klue,
          or wherever --data.sources.0.uri and --data.held_out.0.uri say.
"""

from dataclasses import replace

from experiments.tune_polarity import SIZE
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source, Vocabulary
from flaxlm.experiment import Restore
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.arcs import DependencyArcs
from flaxlm.optim import Linear

FOLDER = "task:klue/dp@data/klue"

experiment = replace(
    recipe,
    model=bert.Parser(
        bert.Body(replace(SIZE, vocab=4096), Compute(scan=False)),
        classes=38,
        tags=45,
        tag_width=64,
        hidden=128,
        arc_width=128,
        relation_width=64,
    ),
    objective=DependencyArcs(relations=38),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        vocabulary=Vocabulary(
            path="runs/tiny_bert_ko/vocab.model", size=4000, kind="wordpiece", sentinels=0
        ),
        length=128,
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=1e-3, warmup=95)),
    run=replace(
        recipe.run, steps=939, eval_every=313, save_every=313, keep_best="max las_macro_f1"
    ),
    start=(Restore("runs/tiny_bert_ko", into="encoder", without=("head", "pair", "pooler")),),
)
