"""GPT-3 small (125M), 300 billion tokens of web text, books and Wikipedia (Brown et al. 2020,
sections 2.1 to 2.3 and appendix B).

Command   python -m flaxlm.train --experiment gpt3_125m
Slice     v5e:4x8 (32 chips), data parallel, rows split in two.
Recipe    0.5M tokens a step, rows of 2,048 tokens of the stream. Adam (0.9, 0.95, 1e-8), clipping
          to norm 1, decay 0.1; peak 6e-4 after 375M tokens, half a cosine to a tenth at 260B
          tokens, then constant to 300B. The batch rises from 32k tokens to the whole over the first
          4 to 12 billion tokens, "depending on the model size" (4 here); the rise is linear in the
          paper and in 8 stages here.
Data      The corpora are not public. By their published shares: C4 for the filtered Common Crawl
          (60 %), C4 like WebText for WebText2 (22 %), PG-19 for Books1 and Books2 (8 + 8 %),
          Wikipedia (3 %). Vocabulary as gpt2.
"""

from dataclasses import replace

from experiments.gpt2 import experiment as gpt2
from flaxlm.data.spec import Data, Phase, Source
from flaxlm.experiment import Experiment
from flaxlm.models import gpt3
from flaxlm.nn.compute import Compute
from flaxlm.optim import AdamW, Cosine
from flaxlm.sharding import Mesh

LENGTH, FIRST, STAGES = 2048, 16, 8  # 16 rows are 32k tokens


def recipe(
    name: str,
    *,
    rows: int,
    peak: float,
    ramp: float,
    mesh: Mesh,
    remat: str = "attention",
    multiple: int = FIRST,
) -> Experiment:
    """The recipe of a size: full batch, peak rate, tokens over which the batch rises, of what the
    batches after the first are multiples.

    The first batch is small, so beyond 16 chips its rows themselves are split (mesh.sequence): as
    many ways as the heads allow, the state over all chips.
    """
    phases, step = [], 0
    for stage in range(STAGES):
        linear = FIRST + (rows - FIRST) * stage / STAGES
        batch = multiple * round(linear / multiple) if stage else FIRST
        phases.append(Phase(start=step, length=LENGTH, batch=batch))
        step += round(ramp / STAGES / (batch * LENGTH))
    phases.append(Phase(start=step, length=LENGTH, batch=rows))
    decayed, steps = (step + round((total - ramp) / (rows * LENGTH)) for total in (260e9, 300e9))
    warmup = round(375e6 / (FIRST * LENGTH))
    return Experiment(
        model=gpt3.Model(gpt3.SIZES[name], Compute(dtype="bfloat16", remat=remat)),
        objective=gpt2.objective,
        data=Data(
            sources=(
                Source("tfds:c4/en", weight=60),
                Source("tfds:c4/webtextlike", weight=22),
                Source("tfds:pg19", weight=16, field="book_text"),
                Source("tfds:wikipedia/20230601.en", weight=3),
            ),
            held_out=(Source("tfds:c4/en", split="validation"),),
            vocabulary=gpt2.data.vocabulary,
            batch=FIRST,
            length=LENGTH,
            phases=tuple(phases[1:]),
        ),
        optimizer=AdamW(
            Cosine(peak=peak, warmup=warmup, end=peak / 10, steps=decayed), b2=0.95, decay=0.1
        ),
        run=replace(gpt2.run, steps=steps, save_every=1_000),
        mesh=mesh,
    )


experiment = recipe("125m", rows=256, peak=6e-4, ramp=4e9, mesh=Mesh(data=16, sequence=2))
