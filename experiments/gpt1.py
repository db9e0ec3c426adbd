"""GPT-1 (117M), language modelling on books (Radford et al. 2018, sections 3.1 and 4.1).

Command   python -m flaxlm.train --experiment gpt1
Slice     v5e:2x4 (8 chips), data parallel.
Recipe    100 epochs of BooksCorpus, here taken as 10^9 tokens: 3,050,000 steps of 64 rows of 512
          contiguous tokens. Adam, peak 2.5e-4 after 2,000 steps, then half a cosine to 0; decay
          0.01 on matrices; dropout 0.1. Gradients are clipped to norm 1 as in the published
          fine-tuning code; the paper does not say whether pretraining did.
Data      BooksCorpus is not public. PG-19 (TFDS pg19, 28,752 books) stands in: long texts, older
          ones. The published vocabulary (ftfy, spaCy, lower-cased BPE, 40,478 entries) is taken
          with --data.vocabulary.path; without it a lower-cased sentencepiece BPE of that size is
          trained.
"""

from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.experiment import Experiment, Run
from flaxlm.models import gpt1
from flaxlm.nn.compute import Compute
from flaxlm.objectives.causal_lm import StreamLM
from flaxlm.optim import AdamW, Cosine
from flaxlm.sharding import Mesh

experiment = Experiment(
    model=gpt1.Model(gpt1.SIZES["base"], Compute(dtype="bfloat16", remat="full")),
    objective=StreamLM(),
    data=Data(
        sources=(Source("tfds:pg19", field="book_text"),),
        held_out=(Source("tfds:pg19", split="validation", field="book_text"),),
        vocabulary=Vocabulary(size=40478, kind="bpe", sentinels=0, lowercase=True),
        batch=64,
        length=512,
    ),
    optimizer=AdamW(Cosine(peak=2.5e-4, warmup=2000), decay=0.01),
    run=Run(steps=3_050_000, log_every=100, eval_every=20_000, eval_batches=16, save_every=10_000),
    mesh=Mesh(data=8),
)
