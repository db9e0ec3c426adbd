"""BERT base on questions that a text may not answer (MRC) of KLUE, as `klue_ynat`.

Command   python -m flaxlm.train --experiment klue_mrc
Recipe    Five epochs of 17,554 questions, 16 rows of 512 tokens, 3e-5 without warmup; texts go over
          several rows, each 128 tokens on, here taken for two a question. The paper has on the
          test set 62.32 (exact) and 68.51 (ROUGE-W).
"""

from dataclasses import replace

from experiments.klue_ynat import BODY, START
from experiments.klue_ynat import experiment as recipe
from flaxlm.data.spec import Source
from flaxlm.models import bert
from flaxlm.objectives.answer_spans import AnswerSpans
from flaxlm.optim import Linear

FOLDER = "task:klue/mrc@data/klue"

experiment = replace(
    recipe,
    model=bert.SpanReader(BODY),
    objective=AnswerSpans(question=64, stride=128),
    start=START,
    data=replace(
        recipe.data,
        sources=(Source(FOLDER),),
        held_out=(Source(FOLDER, split="validation"),),
        batch=16,
        length=512,
    ),
    optimizer=replace(recipe.optimizer, schedule=Linear(peak=3e-5)),
    run=replace(recipe.run, steps=10971, eval_every=2194, save_every=2194, keep_best="max rouge_w"),
)
