"""Polarity of sentences from the small GPT-1 of `tiny_gpt1`, fine-tuned as published (Radford et
al. 2018, section 3.2): start and extract symbols, the language model's loss beside the task's.

Command   python -m flaxlm.train --experiment tiny_gpt1
          python -m flaxlm.train --experiment tune_gpt1
Hardware  2 CPU cores. The files rt-polarity.pos and rt-polarity.neg (nltk's sentence_polarity) lie
          in data/rt-polarity, or wherever --data.sources.0.uri and --data.held_out.0.uri say.
Recipe    The three symbols are new ids behind the vocabulary's last (1024 to 1026), their rows
          drawn as those of all tokens; 32 rows, three epochs, warmup over 0.2 % of the steps,
          linear to 0, decay 0.01, clipping to norm 1, dropout 0.1 also before the head. The
          published rate is 6.25e-5, for a model 6 times as wide and as deep: this one takes more.
"""

from dataclasses import replace

from experiments.tune_polarity import experiment as recipe
from flaxlm.data.spec import Vocabulary
from flaxlm.experiment import Restore
from flaxlm.models import gpt1
from flaxlm.nn.compute import Compute
from flaxlm.objectives.classification import Classification
from flaxlm.objectives.texts import Texts
from flaxlm.optim import AdamW, LinearFromStart

SIZE = gpt1.Size(  # of experiments/tiny_gpt1.py, with dropout and the three symbols
    depth=2, width=128, mlp=512, heads=4, head_dim=32, vocab=1027, positions=128, dropout=0.1
)
START, DELIMITER, EXTRACT = "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"
TEXTS = Texts(f"{START} A {EXTRACT}", f"{START} A {DELIMITER} B {EXTRACT}")

experiment = replace(
    recipe,
    model=gpt1.Classifier(gpt1.Model(SIZE, Compute(scan=False)), classes=2),
    objective=Classification(classes=2, texts=TEXTS, language=0.5),
    data=replace(
        recipe.data,
        vocabulary=Vocabulary(
            path="runs/tiny_gpt1/vocab.model", size=1024, kind="bpe", sentinels=3, lowercase=True
        ),
    ),
    optimizer=AdamW(LinearFromStart(peak=5e-4, warmup=1, multiplied=True), decay=0.01),
    start=(Restore("runs/tiny_gpt1", into="encoder", grow=True),),
)
