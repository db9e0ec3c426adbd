"""DistilBERT base, distilled from BERT base (Sanh et al. 2019, section 3; the published training
script).

Command   python -m flaxlm.train --experiment distilbert_base
Slice     v5e:2x4 (8 chips), data parallel.
Recipe    The student begins with the teacher's layers 0, 2, 4, 7, 9 and 11, its tables and its
          head. 5 x KL at temperature 2 over all tokens + 2 x masked LM + 1 x cosine of the last
          hidden states. AdamW (0.9, 0.98, 1e-6), peak 5e-4 after 5 % of the steps, linear to 0,
          clipping to norm 5, batch 2,000 (8 devices x 5 rows x 50 accumulations). 3 epochs, here
          150,000 steps. Tokens are masked uniformly; the published script draws rare ones more
          often, which is units=RareTokens(path="counts.txt") with dither=True after
          python -m flaxlm.data count FOLDER --out counts.txt on the prepared corpus.
Data      English Wikipedia with BooksCorpus, which is not public: Wikipedia alone (TFDS).
Teacher   runs/bert_base: a run of bert_base, whose vocabulary becomes this run's by
          --data.vocabulary.path=runs/bert_base/vocab.model. For a published checkpoint, converted
          by python -m flaxlm.convert, `teacher` is the class and activation that it prints.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Frozen, Restore, Run
from flaxlm.models import bert, distilbert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.distillation import Distillation
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.optim import AdamW, Linear
from flaxlm.sharding import Mesh

TEACHER = "runs/bert_base"
compute = Compute(dtype="bfloat16", remat="full")
teacher = bert.Model(bert.SIZES["base_uncased"], compute)

experiment = Experiment(
    model=distilbert.Model(distilbert.SIZES["base_uncased"], compute),
    objective=Distillation(masked=MaskedLM(slots=77)),
    data=Data(
        sources=(Source("tfds:wikipedia/20230601.en"),),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=30522, kind="wordpiece", sentinels=0, lowercase=True),
        packing="sentences",
        batch=2000,
        length=512,
    ),
    optimizer=AdamW(Linear(peak=5e-4, warmup=7_500), b2=0.98, eps=1e-6, clip=5.0),
    run=Run(
        steps=150_000,
        accumulate=25,
        log_every=50,
        eval_every=5_000,
        eval_batches=16,
        save_every=2_000,
    ),
    mesh=Mesh(data=8),
    start=(
        Restore(TEACHER, take="layers", into="layers", layers=distilbert.TEACHER_LAYERS),
        Restore(TEACHER, take="embed/tokens", into="embed/tokens"),
        Restore(TEACHER, take="embed/positions", into="embed/positions"),
        Restore(TEACHER, take="embed/norm", into="embed/norm"),
        Restore(TEACHER, take="head", into="head"),
    ),
    frozen=(Frozen("teacher", teacher, Restore(TEACHER)),),
)
