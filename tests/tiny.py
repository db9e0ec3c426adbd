"""The smallest complete experiment, for tests that need one: T5 tiny, span corruption, rows of
literal numbers.
"""

import dataclasses

import numpy as np

from flaxlm import optim
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import t5
from flaxlm.objectives.span_corruption import SpanCorruption

VOCABULARY = Vocabulary(size=400, sentinels=100)

EXPERIMENT = Experiment(
    model=t5.Model(dataclasses.replace(t5.SIZES["tiny"], dropout=0.1)),
    objective=SpanCorruption(z_loss=1e-4),
    data=Data(sources=(Source("embedded:english"),), batch=16, length=64, vocabulary=VOCABULARY),
    optimizer=optim.AdamW(optim.Constant(1e-3), ema=0.9),
    run=Run(steps=5),
)


def batch(step: int = 0) -> dict:
    """One global batch of features of `EXPERIMENT`."""
    window = EXPERIMENT.objective.window(EXPERIMENT.data.length)
    count = EXPERIMENT.data.batch
    ids = np.random.default_rng(step).integers(7, VOCABULARY.size, (count, window))
    rows = Rows.of(ids, index=np.arange(step * count, (step + 1) * count))
    return EXPERIMENT.objective.prepare(rows, RowRandom(0, rows.index), VOCABULARY.blank())
