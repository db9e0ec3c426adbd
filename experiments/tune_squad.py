"""Answers in a context, or none (SQuAD 2.0, Rajpurkar et al. 2018), from `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_squad
Hardware  2 CPU cores, for a short try; train-v2.0.json and dev-v2.0.json lie in data/squad, or
          wherever --data.sources.0.uri and --data.held_out.0.uri say. SQuAD 1.1 is task:squad/v1.
"""

from dataclasses import replace

from experiments.tune_polarity import SIZE
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.experiment import Restore
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.answer_spans import AnswerSpans

FOLDER = "task:squad/v2@data/squad"

experiment = replace(
    recipe,
    model=bert.SpanReader(bert.Body(SIZE, Compute(scan=False))),
    objective=AnswerSpans(question=32, stride=48),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        length=128,
    ),
    run=replace(recipe.run, steps=2000, eval_every=500, save_every=500, keep_best="max best_f1"),
    start=(Restore("runs/tiny_bert", into="encoder", without=("head", "pair", "pooler")),),
)
