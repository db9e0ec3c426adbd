"""BERT base (110M), masked tokens and next sentences (Devlin et al. 2019, section 3.1, appendix A).

Command   python -m flaxlm.train --experiment bert_base
Slice     v5e:4x4 (16 chips), data parallel.
Recipe    1M steps of 256 rows: 128 tokens until step 900,000, then 512. 15 % of the tokens are
          predicted, with 10 corruptions of each text that come round in turn; B follows A half of
          the time. Adam without bias correction, peak 1e-4, linear to 0 from the first step on,
          replaced by a warmup of 10,000 steps; decay 0.01 on matrices; clipping to norm 1;
          dropout 0.1. GELU by tanh as in the published code since 2019; the released base and large
          of 2018 have bert.gelu_erf. Slots are for 512 tokens; 19 of 77 are in use at 128.
Data      The original is English Wikipedia with BooksCorpus, which is not public: Wikipedia alone
          (TFDS). WordPiece vocabulary of 30,522, lower-cased: trained on the data, or the published
          one by --data.vocabulary.path=vocab.txt.
"""

from flaxlm.data.spec import Data, Phase, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence
from flaxlm.optim import AdamW, LinearFromStart
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=bert.Model(bert.SIZES["base_uncased"], Compute(dtype="bfloat16", remat="qkv")),
    objective=MaskedLM(rate=0.15, slots=77, pairs=NextSentence(), static=10),
    data=Data(
        sources=(Source("tfds:wikipedia/20230601.en"),),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=30522, kind="wordpiece", sentinels=0, lowercase=True),
        packing="sentences",
        batch=256,
        length=128,
        phases=(Phase(start=900_000, length=512, batch=256),),
    ),
    optimizer=AdamW(LinearFromStart(peak=1e-4, warmup=10_000), eps=1e-6, decay=0.01, debias=False),
    run=Run(steps=1_000_000, log_every=100, eval_every=10_000, eval_batches=16, save_every=10_000),
    mesh=Mesh(data=16),
)
