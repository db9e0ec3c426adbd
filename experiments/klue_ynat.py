"""BERT base on topics of headlines (YNAT) of KLUE (Park et al. 2021); its other tasks derive from
this.

Command   python -m flaxlm.train --experiment klue_ynat
Hardware  one accelerator with 16 GB.
Recipe    As the published baseline trains KLUE-BERT: four epochs of 45,678 examples, 32 rows of 128
          tokens, Adam at 5e-5 without decay, warmup over a tenth of the steps, linear to 0,
          clipping to norm 1, dropout 0.1. The paper has on the test set 85.49 (macro F1).
Data      The publisher's files, KLUE's klue_benchmark, lie in data/klue, or wherever
          --data.sources.0.uri and --data.held_out.0.uri say.
Start     runs/klue_bert: of the published one by
          `python -m flaxlm.convert --from-hf klue-bert-base --to runs/klue_bert`. A masked language
          model has no pooler: that begins anew.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Restore, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Classification
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

SIZE = bert.Size(12, 768, 3072, 12, vocab=32000)  # KLUE-BERT
BODY = bert.Body(SIZE, Compute(dtype="bfloat16"), activation=bert.gelu_erf)
# The heads that pretraining needs and a task does not; and the pooler, for what reads tokens.
HEADS = ("head", "pair")
START = (Restore("runs/klue_bert", into="encoder", without=(*HEADS, "pooler")),)

experiment = Experiment(
    model=bert.Classifier(bert.Encoder(SIZE, BODY.compute, activation=bert.gelu_erf), classes=7),
    objective=Classification(classes=7),
    data=Data(
        sources=(Source("task:klue/ynat@data/klue"),),
        held_out=(Source("task:klue/ynat@data/klue", split="validation"),),
        vocabulary=Vocabulary(
            path="runs/klue_bert/vocab.model", size=32000, kind="wordpiece", sentinels=0
        ),
        packing="examples",
        batch=32,
        length=128,
    ),
    optimizer=AdamW(Linear(peak=5e-5, warmup=571)),
    run=Run(
        steps=5710,
        log_every=50,
        eval_every=1428,
        eval_batches=0,
        save_every=1428,
        keep=1,
        keep_best="max macro_f1",
    ),
    mesh=Mesh(),
    start=(Restore("runs/klue_bert", into="encoder", without=HEADS),),
)
