"""What the objectives of tasks have in common: they learn from examples, not from a stream of text.

`encode` (host, once) makes rows of examples; `terms` (device) score a head's outputs; `answers`
(device) takes from the outputs what `predictions` (host) turns into the task's answers. The names
of forms and the fields of examples are those of `flaxlm.tasks.base`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.data.encoded import Encoded, ExampleRows
from flaxlm.data.random import RowRandom
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Example, Objective, Outputs
from flaxlm.objectives.texts import Row, Texts, symbol, truncated, windows
from flaxlm.objectives.tokens import shift_right


@dataclass(frozen=True, kw_only=True)
class ExampleObjective(Objective):
    """Base of the objectives of tasks.

    Attributes:
      texts: what stands around a text and a pair.

    Class attributes:
      form: name of the form (`flaxlm.tasks.base`) of the tasks that are learned.
    """

    texts: Texts = field(default_factory=Texts)

    packings = ("examples",)
    measured = ("", "", "")
    form: ClassVar[str]

    def window(self, length: int) -> int:
        return length

    @property
    def groups(self) -> int:
        """Texts side by side in a row, each of `Data.length` positions."""
        return 1

    def check(self, form, *, name: str) -> None:
        """Check that this objective can learn tasks of a form.

        Args:
          form: of `flaxlm.tasks.base`.
          name: of the task.

        Raises:
          ConfigError: it cannot, saying which can, or with the numbers that differ.
        """
        if type(form).__name__ != self.form:
            raise ConfigError(
                f"task:{name} is of the form {type(form).__name__}; {type(self).__name__} learns "
                f"{self.form}"
            )

    @abstractmethod
    def targets(self, rows: int, length: int) -> Features:
        """The features that are to be learned, and their weights, as zeros."""

    @abstractmethod
    def encode(self, examples: Sequence[Mapping], form, vocab, length: int) -> Encoded:
        """The rows of examples of a form; one that has no label gets weight 0."""

    @abstractmethod
    def answers(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Device: {name: [B, ...]}, from what `forward` returned."""

    @abstractmethod
    def predictions(
        self, answers: Mapping[str, np.ndarray], encoded: Encoded, examples: Sequence, form
    ) -> list[Any]:
        """Host: one answer per example, of `answers` of all rows [N, ...] in their order."""

    def blank(self, length: int, vocab) -> ExampleRows:
        width = length * self.groups
        encoded = Encoded(
            tokens=np.full((1, width), vocab.unk),
            types=np.zeros((1, width), np.uint8),
            lengths=np.full((1, self.groups), length),
            example=np.zeros(1, np.int64),
            targets=self.targets(1, length),
        )
        return ExampleRows(encoded, np.zeros(1, int), index=np.zeros(1, np.int64), pad=0)

    def prepare(self, rows: ExampleRows, rng: RowRandom, vocab) -> Features:
        """The features of rows that were encoded before; nothing is random. A decoder's are the
        rows again, shifted right.
        """
        features = dict(rows.features)
        if self.texts.decoder:
            start = symbol(vocab, self.texts.decoder)
            shifted = shift_right(features["tokens"], start)
            shifted[features["positions"] == 0] = start  # first of a text, and all padding
            features["decoder_tokens"] = shifted
            features |= {f"decoder_{n}": features[n] for n in ("segments", "positions")}
        return features

    def show(self, features: Features, vocab) -> list[Example]:
        """The text of each row; what is to be answered, as numbers."""
        names = [name for name in self.targets(1, 1) if "weights" not in name]
        return [
            Example(
                vocab.decode(features["tokens"][row][features["segments"][row] > 0]),
                " ".join(f"{name}={self._shown(features[name][row])}" for name in names),
            )
            for row in range(len(features["tokens"]))
        ]

    @staticmethod
    def _shown(value: np.ndarray) -> str:
        return str(value) if value.ndim == 0 else ",".join(map(str, value[value > 0]))

    def rows_of_texts(
        self, examples: Sequence[Mapping], vocab, length: int, *, stride: int = 0
    ) -> tuple[list[list[Row]], list[int]]:
        """(rows of one text each, the example of each row) of examples with "text" and perhaps
        "pair".

        Args:
          stride: 0 cuts what is too long, the longer text first; else the last text goes over as
            many rows as it needs, each so many tokens on.
        """
        first = vocab.encode_batch([example["text"] for example in examples])
        second = vocab.encode_batch([example["pair"] or "" for example in examples])
        rows, places = [], []
        for at, example in enumerate(examples):
            parts = [first[at]] if example["pair"] is None else [first[at], second[at]]
            room = self.texts.room(len(parts), length)
            cut = [truncated(parts, room)]
            if stride and sum(map(len, parts)) > room:
                *before, last = parts
                before = [part[: room // 2] for part in before]
                left = room - sum(map(len, before))
                cut = [[*before, last[a:b]] for a, b in windows(len(last), left, stride)]
            rows += [[self.texts.around(vocab, *part)[0]] for part in cut]
            places += [at] * len(cut)
        return rows, places


def mean_per_example(values: np.ndarray, example: np.ndarray, count: int) -> np.ndarray:
    """[count, ...] means of the rows of each example."""
    sums = np.zeros((count, *values.shape[1:]), np.float64)
    np.add.at(sums, example, values)
    rows = np.bincount(example, minlength=count).reshape(-1, *[1] * (values.ndim - 1))
    return sums / np.maximum(rows, 1)


def check_count(name: str, here: int, *, task: str, there: int) -> None:
    """Check a number of classes.

    Raises:
      ConfigError: with both numbers.
    """
    if here != there:
        raise ConfigError(f"objective.{name}={here}: task:{task} has {there}")


def check_width(objective, logits: jax.Array, wanted: int) -> None:
    """Check, as a run is traced, that a head is as wide as the objective expects.

    Raises:
      ConfigError: with both numbers.
    """
    if logits.shape[-1] != wanted:
        raise ConfigError(
            f"the model's head has {logits.shape[-1]} outputs, {type(objective).__name__} reads "
            f"{wanted}: make model.classes the same number"
        )
