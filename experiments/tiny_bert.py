"""A small BERT on the English that Python carries: minutes on a laptop.

Command   python -m flaxlm.train --experiment tiny_bert
Hardware  2 CPU cores, nothing to download.
Measured  2.0 minutes; masked tokens 5.16 nat held out, 0.53 nat under their unigram entropy; next
          sentence right 62 % of the time.
"""

from dataclasses import replace

from experiments.bert_base import experiment as recipe
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence
from flaxlm.optim import Cosine, Muon
from flaxlm.sharding import Mesh

experiment = replace(
    recipe,
    model=bert.Model(
        bert.Size(
            depth=2,
            width=128,
            mlp=512,
            heads=4,
            vocab=1024,
            length=128,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        Compute(scan=False),
    ),
    objective=MaskedLM(slots=20, pairs=NextSentence()),
    data=Data(
        sources=(Source("embedded:english"),),
        vocabulary=Vocabulary(size=1024, kind="wordpiece", sentinels=0, lowercase=True),
        packing="sentences",
        held_out_share=0.06,
        batch=32,
        length=128,
    ),
    optimizer=Muon(Cosine(peak=0.006, warmup=60), decay=0.01),
    run=Run(steps=800, log_every=50, eval_every=200, save_every=400),
    mesh=Mesh(),
)
