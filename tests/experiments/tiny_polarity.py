"""The smallest fine-tuning run: a tiny BERT tells two kinds of sentences apart by one word."""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Classification
from flaxlm.optim import AdamW, Constant

SIZE = bert.Size(1, 16, 32, 2, vocab=96, length=24, dropout=0.1)

experiment = Experiment(
    model=bert.Classifier(bert.Encoder(SIZE, Compute(scan=False)), classes=2),
    objective=Classification(classes=2),
    data=Data(
        sources=(Source("task:sentences/polarity@SET", split="train[:80%]"),),
        held_out=(Source("task:sentences/polarity@SET", split="train[80%:]"),),
        vocabulary=Vocabulary(size=72, kind="wordpiece", sentinels=0, lowercase=True),
        packing="examples",
        batch=16,
        length=16,
    ),
    optimizer=AdamW(Constant(5e-3)),
    run=Run(
        steps=40, log_every=20, eval_every=20, eval_batches=0, save_every=20, keep=1,
        keep_best="max accuracy",
    ),
)  # fmt: skip
