"""What objectives share that begin with the input of a masked language model and go on from there:
replaced token detection, distillation.
"""

from dataclasses import dataclass, field

import jax
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.objectives.base import Apply, Example, Objective
from flaxlm.objectives.masked_lm import MaskedLM


@dataclass(frozen=True, kw_only=True)
class OnMasked(Objective):
    """An objective on the input of a masked LM: its features, and weights: 1 on every real token.

    Attributes:
      masked: makes the input, and says what is to be predicted at the slots.
    """

    masked: MaskedLM = field(default_factory=MaskedLM)

    @property
    def packings(self) -> tuple[str, ...]:
        return self.masked.packings

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.masked.symbols

    @property
    def partners(self) -> int:
        return self.masked.partners

    @property
    def measured(self) -> tuple[str, str, str]:
        return self.masked.measured

    def window(self, length: int) -> int:
        return self.masked.window(length)

    def separator(self, vocab) -> int | None:
        return self.masked.separator(vocab)

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        features = self.masked.prepare(rows, rng, vocab)
        return {**features, "weights": (features["segments"] > 0).astype(np.float32)}

    def show(self, features: Features, vocab) -> list[Example]:
        return self.masked.show(features, vocab)

    def predict(self, apply: Apply, batch: Batch) -> jax.Array:
        return self.masked.predict(apply, batch)
