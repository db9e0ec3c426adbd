"""TinyBERT of 4 layers, general distillation from BERT base (Jiao et al. 2020, sections 3 and 4).

Command   python -m flaxlm.train --experiment tinybert_4l
Slice     v5e:2x4 (8 chips), data parallel.
Recipe    The first stage: mean squared differences of attention scores (before the softmax) and of
          embeddings and hidden states, each student layer under every third layer of the teacher,
          on 3 epochs of text, here 1M steps of 256 rows of 128 tokens. Adam without bias
          correction, peak 5e-5 after 10 %, linear to 0; decay 0.01; every tensor's gradient clipped
          to norm 1. The second stage is the same objective on a task's texts under a fine-tuned
          teacher, then prediction=1 alone, for models with a task head ("class_logits").
Data      English Wikipedia (TFDS); the original has 2,500M words of it.
Teacher   runs/bert_base: a run of bert_base, whose vocabulary becomes this run's by
          --data.vocabulary.path=runs/bert_base/vocab.model. For a published checkpoint, converted
          by python -m flaxlm.convert, `teacher` is the class and activation that it prints.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Frozen, Restore, Run
from flaxlm.models import bert, tinybert
from flaxlm.nn.compute import Compute
from flaxlm.objectives.distillation import LayerDistillation
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence
from flaxlm.optim import AdamW, LinearFromStart
from flaxlm.sharding import Mesh

TEACHER = "runs/bert_base"
compute = Compute(dtype="bfloat16")
teacher = bert.Model(bert.SIZES["base_uncased"], compute)

experiment = Experiment(
    model=tinybert.Model(tinybert.SIZES["4l"], compute),
    objective=LayerDistillation(masked=MaskedLM(slots=20, pairs=NextSentence())),
    data=Data(
        sources=(Source("tfds:wikipedia/20230601.en"),),
        held_out_share=0.001,
        vocabulary=Vocabulary(size=30522, kind="wordpiece", sentinels=0, lowercase=True),
        packing="sentences",
        batch=256,
        length=128,
    ),
    optimizer=AdamW(
        LinearFromStart(peak=5e-5, warmup=100_000),
        eps=1e-6,
        decay=0.01,
        debias=False,
        clip=0.0,
        clip_each=1.0,
    ),
    run=Run(steps=1_000_000, log_every=100, eval_every=10_000, eval_batches=16, save_every=10_000),
    mesh=Mesh(data=8),
    frozen=(Frozen("teacher", teacher, Restore(TEACHER)),),
)
