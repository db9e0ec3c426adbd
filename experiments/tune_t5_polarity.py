"""Polarity of sentences (Pang and Lee 2005) as text in, text out, from the small T5 of `t5_span`.

Command   python -m flaxlm.train --experiment t5_span
          python -m flaxlm.train --experiment tune_t5_polarity
Hardware  2 CPU cores. The files rt-polarity.pos and rt-polarity.neg (nltk's sentence_polarity) lie
          in data/rt-polarity, or wherever --data.sources.0.uri and --data.held_out.0.uri say.
"""

from dataclasses import replace

from experiments.t5_span import experiment as pretraining
from experiments.tune_polarity import FOLDER
from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Source, Vocabulary
from flaxlm.experiment import Restore
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.templates import Template
from flaxlm.objectives.text_to_text import TextToText
from flaxlm.optim import Adafactor, Constant

experiment = replace(
    recipe,
    model=t5.Model(replace(pretraining.model.size, dropout=0.1), Compute(scan=False)),
    objective=TextToText(template=Template("sst2 sentence: {text}"), answer=8),
    data=replace(
        recipe.data,
        sources=(Source(FOLDER, split="train[:90%]"),),
        held_out=(Source(FOLDER, split="train[90%:]"),),
        vocabulary=Vocabulary(path="runs/t5_span/vocab.model", size=1024),
        length=96,
    ),
    optimizer=Adafactor(Constant(1e-2)),
    start=(Restore("runs/t5_span"),),
)
