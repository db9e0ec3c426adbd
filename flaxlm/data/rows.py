"""`Rows`: what the corpus hands to an objective: a window of tokens per row, all of one width."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """A batch of token windows. `B` rows, `W` window. Rows of a corpus come as `PieceRows`, alike.

    Attributes:
      index: [B] int64, global row numbers of the run (step * global batch + place in the batch).
      tokens: [B, W] int32, the pad id where `segments` is 0.
      segments: [B, W] int32, 1, 2, ... for the documents of a row in order, 0 for padding (always
        at the end).
      positions: [B, W] int32, position inside the segment, from 0; 0 on padding.
      sentences: [B, W] bool, True on the first token of a sentence.
      partners: as many further rows to each row as the objective asks for (`Objective.partners`):
        row i of each is some other row of the corpus of row i, drawn at random; `index` is alike.
    """

    index: np.ndarray
    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    sentences: np.ndarray
    partners: "tuple[Rows, ...]" = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> np.ndarray:
        """[B] tokens of each row before its padding."""
        return np.count_nonzero(self.segments, axis=1)

    @property
    def window(self) -> np.ndarray:
        """[B] int64, which text a row is, the same in every epoch (unless a stream is cut anew);
        here every row is one of its own.
        """
        return self.index

    @property
    def epoch(self) -> np.ndarray:
        """[B] int64, how often its text was read before."""
        return np.zeros_like(self.index)

    @classmethod
    def of(cls, tokens, *, index=None, partners: "tuple[Rows, ...]" = ()) -> "Rows":
        """Rows of literal tokens [B, W], each one document and sentence: for tests and tracing."""
        tokens = np.asarray(tokens, np.int32)
        count, width = tokens.shape
        sentences = np.zeros(tokens.shape, bool)
        sentences[:, 0] = True
        return cls(
            index=np.arange(count) if index is None else np.asarray(index, np.int64),
            tokens=tokens,
            segments=np.ones_like(tokens),
            positions=np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape).copy(),
            sentences=sentences,
            partners=partners,
        )
