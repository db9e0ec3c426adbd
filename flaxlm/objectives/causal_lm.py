"""The plain language model: every token from those before it, in a decoder-only stack.

    text       d0 d1 d2 </s> | e0 e1 </s>        two documents of a row, each closed by eos
    input      0 d0 d1 d2    | 0 e0 e1           shifted right, every document from the start id
    target     d0 d1 d2 </s> | e0 e1 </s>

Documents of a row do not see one another: positions start anew and segments differ, so a packed row
scores exactly as its documents would alone.
"""

from dataclasses import dataclass

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.objectives.base import Example
from flaxlm.objectives.tokens import TokenObjective, shift_right, text_weights


@dataclass(frozen=True, kw_only=True)
class CausalLM(TokenObjective):
    """Next-token prediction over whole rows; the start id is the pad id, as in T5's decoder."""

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
