"""A small RoBERTa on the English that Python carries: minutes on a laptop.

Command   python -m flaxlm.train --experiment tiny_roberta
Hardware  2 CPU cores, nothing to download.
Measured  2.1 minutes; masked tokens 5.11 nat held out, 0.71 nat under their unigram entropy.
"""

from dataclasses import replace

from experiments.roberta_base import experiment as recipe
from experiments.tiny_bert import experiment as twin
from flaxlm.data.spec import Vocabulary
from flaxlm.models import roberta
from flaxlm.nn.compute import Compute

experiment = replace(
    recipe,
    model=roberta.Model(
        roberta.Size(
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
    objective=replace(recipe.objective, slots=20),
    data=replace(
        twin.data,
        vocabulary=Vocabulary(size=1024, kind="bytes", sentinels=0),
        packing="full_sentences",
    ),
    optimizer=twin.optimizer,
    run=twin.run,
    mesh=twin.mesh,
)
