"""The smallest complete run: T5 tiny, span corruption, a text file named on the command line."""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.optim import AdamW, Constant

experiment = Experiment(
    model=t5.Model(t5.Size(1, 32, 64, 2, head_dim=16, vocab=512, dropout=0.1), Compute(scan=False)),
    objective=SpanCorruption(),
    data=Data(
        sources=(Source("text:none"),),
        vocabulary=Vocabulary(size=400, kind="bpe"),
        batch=8,
        length=32,
        held_out_share=0.1,
    ),
    optimizer=AdamW(Constant(1e-3)),
    run=Run(steps=6, log_every=1, save_every=2, eval_every=4, eval_batches=2),
)
