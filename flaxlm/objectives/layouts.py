"""How rows of the corpus become the input of a masked model; here the simplest way, one text.

    one text        [CLS] text [SEP]

Two texts and what they are to one another: `objectives.pairs`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError


class Layout(ABC):
    """How rows of the corpus become inputs.

    Class attributes:
      partners: see `Objective.partners`.
      packings: see `Objective.packings`.
      labelled: whether rows have a label, to be predicted.
    """

    partners: ClassVar[int] = 0
    labelled: ClassVar[bool] = False
    packings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def window(self, length: int) -> int:
        """Raw tokens per row for inputs of `length` positions.

        Raises:
          ConfigError: if the length is too short.
        """

    @abstractmethod
    def separator(self, vocab) -> int | None:
        """As `Objective.separator`."""

    @abstractmethod
    def lay_out(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, L]: tokens, segments, positions, types; labels and label_weights [B] if
        rows are labelled.
        """


@dataclass(frozen=True)
class OneText(Layout):
    """[CLS] text [SEP]. Every document ends in [SEP], and so does every row: a row that ends with
    its document has no second one. Documents of a row see one another, as in RoBERTa.
    """

    packings = ("stream", "split", "sentences", "full_sentences")

    def window(self, length: int) -> int:
        if length < 3:
            raise ConfigError(f"data.length={length} is too short for [CLS] text [SEP]: at least 3")
        return length - 2

    def separator(self, vocab) -> int:
        return vocab.sep

    def lay_out(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        count, width = rows.tokens.shape
        lengths = np.asarray(rows.lengths)
        row = np.arange(count)
        closed = (lengths > 0) & (rows.tokens[row, np.maximum(lengths, 1) - 1] == vocab.sep)
        used = np.where(lengths > 0, lengths + 2 - closed, 0)
        tokens = np.empty((count, width + 2), np.int32)
        tokens[:, 0] = vocab.cls
        tokens[:, 1:-1] = rows.tokens
        tokens[:, -1] = vocab.pad
        tokens[row, np.maximum(used, 1) - 1] = vocab.sep
        tokens[used == 0] = vocab.pad
        return {"tokens": tokens, **places(used, width + 2), "types": np.zeros_like(tokens)}


def places(used: np.ndarray, length: int) -> Features:
    """segments and positions [B, length] of one text of used[b] tokens."""
    columns = np.arange(length, dtype=np.int32)
    if used.min(initial=length) == length:
        positions = np.broadcast_to(columns, (len(used), length))
        return {"segments": np.ones((len(used), length), np.int32), "positions": positions}
    segments = (columns < used.astype(np.int32)[:, None]).astype(np.int32)
    return {"segments": segments, "positions": segments * columns}
