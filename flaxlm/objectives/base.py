"""What a pretraining objective is: features made on the host, losses scored on the device.

An objective is a frozen dataclass of numbers. It never sees a model's code: `prepare` makes named
features with numpy, `forward` calls the model it is given, `terms` say what each loss is, where it
counts and what it is divided by.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows

Outputs = Mapping[str, Any]  # what a model returns, by name


class Apply(Protocol):
    """The model with its parameters: `apply(batch, rng=key) -> outputs`; `rng=None` switches
    dropout off. `layers` adds what every layer sows, stacked: "layers/hidden" [N, B, L, D],
    "layers/attention/scores" [N, B, H, Q, S] (before mask and softmax).

    Attributes:
      frozen: by the names of `experiment.frozen`, models that are never trained.
    """

    frozen: Mapping[str, "Apply"]

    def __call__(
        self,
        batch: Batch,
        *,
        rng: jax.Array | None,
        method: str | None = None,
        layers: bool = False,
    ) -> Outputs: ...


@dataclass(frozen=True)
class Term:
    """One loss. The step sums `values * batch[weights]` over the global batch and divides by the
    sum of the weights.

    Both sums run over the whole batch, all hosts and micro-batches, so the mean is exact under any
    layout.

    Attributes:
      values: (outputs, batch) -> per-element values, unweighted, of the shape of the weights.
      weights: name of the batch feature that is weight and denominator.
      scale: factor of the mean in the total loss; 0 makes the term a metric.
    """

    values: Callable[[Outputs, Batch], jax.Array]
    weights: str
    scale: float = 1.0


@dataclass(frozen=True)
class Example:
    """One training example as a person reads it."""

    input: str
    target: str


class Objective(ABC):
    """Base of all objectives; subclasses are frozen dataclasses of numbers.

    Class attributes:
      packings: the values of `Data.packing` whose rows the objective can use.
      symbols: special ids the vocabulary must have, names of `data.vocab.SPECIAL`; checked before
        the first step.
      partners: how many more rows `prepare` gets with every row (`Rows.partners`), each a random
        row of the same corpus: where the second text of a random pair comes from.
      measured: (term, feature of targets, feature of weights) of the loss that is compared with the
        entropy of its targets after the run.
    """

    packings: ClassVar[tuple[str, ...]] = (
        "stream", "split", "pack", "sentences", "full_sentences", "continue"
    )  # fmt: skip
    symbols: ClassVar[tuple[str, ...]] = ()
    partners: ClassVar[int] = 0
    measured: ClassVar[tuple[str, str, str]] = ("text_nll", "targets", "text_weights")

    @abstractmethod
    def window(self, length: int) -> int:
        """Raw tokens per row of the corpus such that the longest feature that `prepare` makes
        has `length` positions.
        """

    def advance(self, length: int) -> int:
        """Raw tokens by which a row moves on at every step under the packing "continue"; fewer
        than its window where successive rows overlap.
        """
        return self.window(length)

    def separator(self, vocab) -> int | None:
        """Id put after every document before the corpus is cut into windows; None: no id."""
        return None

    def blank(self, length: int, vocab) -> Rows:
        """One row of the length that `Data.length` says, to trace a run with."""
        row = Rows.of(np.full((1, self.window(length)), vocab.unk))
        return dataclasses.replace(row, partners=(row,) * self.partners)

    @abstractmethod
    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Host, numpy, pure, vectorised over rows: the features of `rows`; shapes depend on
        rows.tokens.shape alone.
        """

    def forward(self, apply: Apply, batch: Batch, rng: jax.Array | None) -> Outputs:
        """Device: call the model (usually once) and add what the terms share. `rng` None means
        evaluation.
        """
        return apply(batch, rng=rng)

    @property
    @abstractmethod
    def terms(self) -> Mapping[str, Term]:
        """The losses, by name."""

    @abstractmethod
    def show(self, features: Features, vocab) -> list[Example]:
        """The rows of `features` as text, input and target side by side."""

    def answers(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Device: what an evaluation keeps of every row beside the terms, {name: [B, ...]}."""
        return {}

    def predict(self, apply: Apply, batch: Batch) -> jax.Array | None:
        """Device: ids the model gives for the feature of targets (`measured`) from the inputs
        alone, of its shape; None where that has no meaning.
        """
        return None

    def guessed(self, features: Features, predicted: np.ndarray, vocab) -> Features:
        """`features` with the ids of `predict` as targets, for `show` to show."""
        return {**features, self.measured[1]: predicted}
