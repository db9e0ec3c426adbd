"""BERT base on SST-2 of GLUE (Devlin et al. 2019, section 4.1); the other tasks derive from this.

Command   python -m flaxlm.train --experiment glue_sst2
Hardware  one accelerator with 16 GB.
Recipe    Three epochs of 32 rows of 128 tokens; the best of 5e-5, 4e-5, 3e-5 and 2e-5 on the
          development set (2e-5 here); Adam without bias correction, warmup over a tenth of the
          steps, linear to 0; decay 0.01, clipping to norm 1, dropout 0.1. The paper has 93.5 % on
          the test set.
Start     runs/bert_base: made by `--experiment bert_base`, or of a published one by
          `python -m flaxlm.convert --from-hf bert-base-uncased --to runs/bert_base`.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Restore, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Classification
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=bert.Classifier(
        bert.Encoder(bert.SIZES["base_uncased"], Compute(dtype="bfloat16")), classes=2
    ),
    objective=Classification(classes=2),
    data=Data(
        sources=(Source("task:glue/sst2"),),
        held_out=(Source("task:glue/sst2", split="validation"),),
        vocabulary=Vocabulary(
            path="runs/bert_base/vocab.model",
            size=30522,
            kind="wordpiece",
            sentinels=0,
            lowercase=True,
        ),
        packing="examples",
        batch=32,
        length=128,
    ),
    optimizer=AdamW(Linear(peak=2e-5, warmup=631), eps=1e-6, decay=0.01, debias=False),
    run=Run(
        steps=6313,
        log_every=50,
        eval_every=2104,
        eval_batches=0,
        save_every=2104,
        keep=1,
        keep_best="max accuracy",
    ),
    mesh=Mesh(),
    start=(Restore("runs/bert_base", into="encoder", without=("head", "pair")),),
)
