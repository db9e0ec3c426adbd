"""Polarity of sentences (Pang and Lee 2005) from the small BERT of `tiny_bert`.

Command   python -m flaxlm.train --experiment tiny_bert
          python -m flaxlm.train --experiment tune_polarity
Hardware  2 CPU cores. The files rt-polarity.pos and rt-polarity.neg (nltk's sentence_polarity) lie
          in data/rt-polarity, or wherever --data.sources.0.uri and --data.held_out.0.uri say.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Restore, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Classification
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

SIZE = bert.Size(  # of experiments/tiny_bert.py, with dropout: fine-tuning reads little text often
    depth=2, width=128, mlp=512, heads=4, vocab=1024, length=128, dropout=0.1,
    attention_dropout=0.1,
)  # fmt: skip
FOLDER = "task:sentences/polarity@data/rt-polarity"
# The heads that pretraining needs and a task does not.
START = (Restore("runs/tiny_bert", into="encoder", without=("head", "pair")),)

experiment = Experiment(
    model=bert.Classifier(bert.Encoder(SIZE, Compute(scan=False)), classes=2),
    objective=Classification(classes=2),
    data=Data(
        sources=(Source(FOLDER, split="train[:90%]"),),
        held_out=(Source(FOLDER, split="train[90%:]"),),
        vocabulary=Vocabulary(
            path="runs/tiny_bert/vocab.model",
            size=1024,
            kind="wordpiece",
            sentinels=0,
            lowercase=True,
        ),
        packing="examples",
        batch=32,
        length=64,
    ),
    optimizer=AdamW(Linear(peak=5e-4, warmup=70), decay=0.01),
    run=Run(
        steps=708,  # three epochs
        log_every=50,
        eval_every=236,
        eval_batches=0,
        save_every=236,
        keep=1,
        keep_best="max accuracy",
    ),
    mesh=Mesh(),
    start=START,
)
