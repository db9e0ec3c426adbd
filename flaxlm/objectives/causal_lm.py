"""The plain language model: every token from those before it, in a decoder-only stack. Two forms,
which differ in what a document sees of the one before it in its row.

`CausalLM` keeps documents apart, as T5 does; each begins with the start id:

    text       d0 d1 d2 </s> | e0 e1 </s>        two documents of a row, each closed by eos
    input      0 d0 d1 d2    | 0 e0 e1           shifted right, every document from the start id
    target     d0 d1 d2 </s> | e0 e1 </s>

Positions start anew and segments differ, so a packed row scores exactly as its documents would
alone.

`StreamLM` is the form of Radford et al. (2018, 2019) and Brown et al. (2020, appendix B): a row is
a stretch of the stream of documents, eos (their end-of-text token) between them. Attention crosses
documents and positions count through; the eos before a document is its start id.

    text       d1 d2 </s> e0 e1 </s> f0          seven tokens for six positions
    input      d1 d2 </s> e0 e1 </s>
    target     d2 </s> e0 e1 </s> f0
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.objectives.base import Example
from flaxlm.objectives.tokens import TokenObjective, shift_right, text_weights


@dataclass(frozen=True, kw_only=True)
class CausalLM(TokenObjective):
    """Next-token prediction, every document on its own; the start id is the pad id, as in T5's
    decoder.
    """

    symbols: ClassVar[tuple[str, ...]] = ("pad", "eos")

    def window(self, length: int) -> int:
        """Raw tokens, separators included, of a row: all positions."""
        return length

    def separator(self, vocab) -> int:
        """Eos: the model learns where a document ends."""
        return vocab.eos

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, W]: tokens, segments, positions, targets, weights and text_weights."""
        tokens = shift_right(rows.tokens, vocab.pad)
        tokens[rows.positions == 0] = vocab.pad  # first of a document, and all padding
        weights = (rows.segments > 0).astype(np.float32)
        return {
            "tokens": tokens,
            "segments": rows.segments,
            "positions": rows.positions,
            "targets": rows.tokens,
            "weights": weights,
            "text_weights": text_weights(rows.tokens, weights, vocab),
        }

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(tokens[segments > 0]), vocab.decode(targets[segments > 0]))
            for tokens, targets, segments in zip(
                *(features[name] for name in ("tokens", "targets", "segments")), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True)
class StreamLM(CausalLM):
    """Next-token prediction through whatever stands in a row, as one text."""

    def window(self, length: int) -> int:
        """Raw tokens of a row: one more than positions, the last is a target only."""
        return length + 1

    def advance(self, length: int) -> int:
        """Raw tokens from a row to the row that goes on after it: its last target is read again."""
        return length

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, W - 1], as `CausalLM.prepare`; segments are 1 where there is a target."""
        real = rows.segments[:, 1:] > 0
        pad = np.int32(vocab.pad)
        targets = np.where(real, rows.tokens[:, 1:], pad)
        weights = real.astype(np.float32)
        return {
            "tokens": np.where(real, rows.tokens[:, :-1], pad),
            "segments": real.astype(np.int32),
            "positions": np.where(real, np.arange(real.shape[1], dtype=np.int32), np.int32(0)),
            "targets": targets,
            "weights": weights,
            "text_weights": text_weights(targets, weights, vocab),
        }
