"""Prefix language modelling (Raffel et al. 2020, section 3.2.1): read the start, write the rest.

    text       t0 t1 t2 t3 t4, split after two tokens
    input      t0 t1 </s>
    target     t2 t3 t4 </s>

The split is uniform: a text of n tokens is cut after 1, 2, ... or n - 1 of them
(`random_prefix_noise_mask` of the published code). `PrefixLM` feeds an encoder-decoder,
`OneStackPrefixLM` a decoder-only stack that looks at its input in both directions. A row is one
text, also where several documents share it, as in T5.
"""

from dataclasses import dataclass

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Example
from flaxlm.objectives.tokens import (
    EncoderDecoderObjective,
    TokenObjective,
    shift_right,
    text_weights,
)


def split_points(tokens: np.ndarray, rng: RowRandom) -> np.ndarray:
    """[B] tokens of the prefix of texts of `tokens` tokens: uniform in [1, tokens - 1], or 0."""
    return (1 + rng.integers(np.maximum(tokens - 1, 1)[:, None], 1)[:, 0]) * (tokens > 1)


def _window(length: int, ends: int) -> int:
    if length < ends + 2:
        raise ConfigError(
            f"data.length={length} is too short for prefix LM: it needs at least {ends + 2}"
        )
    return length - ends


@dataclass(frozen=True, kw_only=True)
class PrefixLM(EncoderDecoderObjective):
    """Prefix LM for an encoder-decoder: input the prefix, target the rest, each closed by eos."""

    def window(self, length: int) -> int:
        """Raw tokens: all positions but one for eos."""
        return _window(length, 1)

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, W + 1]: tokens, segments, decoder_*, targets and weights."""
        tokens = rows.lengths
        split = split_points(tokens, rng)
        inputs, segments = _piece(rows.tokens, np.zeros_like(split), split, tokens > 0, vocab)
        targets, decoder_segments = _piece(rows.tokens, split, tokens, tokens > 0, vocab)
        return {
            "tokens": inputs,
            "segments": segments,
            "decoder_tokens": shift_right(targets, vocab.pad),
            "decoder_segments": decoder_segments,
            "targets": targets,
            "weights": decoder_segments.astype(np.float32),
            "text_weights": text_weights(targets, decoder_segments, vocab),
        }

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(tokens[segments > 0]), vocab.decode(targets[weights > 0]))
            for tokens, segments, targets, weights in zip(
                *(features[name] for name in ("tokens", "segments", "targets", "weights")),
                strict=True,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class OneStackPrefixLM(TokenObjective):
    """Prefix LM for a decoder-only stack: one sequence, of which only the target is scored.

    The sequence is shifted right, so the position that predicts the first target reads the end of
    the input: `prefix` covers the input and one position more.
    """

    def window(self, length: int) -> int:
        """Raw tokens: all positions but two, for the eos of input and target."""
        return _window(length, 2)

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, W + 2]: tokens, segments, positions, prefix, targets and weights."""
        count, width = rows.tokens.shape
        tokens = rows.lengths
        split = split_points(tokens, rng)[:, None]
        columns = np.arange(width + 2)
        some = tokens > 0
        used = np.where(some, tokens + 2, 0)[:, None]
        real = columns < used
        closing = real & ((columns == split) | (columns == used - 1))
        targets = np.full((count, width + 2), vocab.pad, np.int32)
        targets[real & ~closing] = rows.tokens[np.arange(width) < tokens[:, None]]
        targets[closing] = vocab.eos
        inputs = np.where(real, shift_right(targets, vocab.pad), np.int32(vocab.pad))
        weights = (real & (columns > split)).astype(np.float32)
        return {
            "tokens": inputs,
            "segments": real.astype(np.int32),
            "positions": np.where(real, columns, 0).astype(np.int32),
            "prefix": (real & (columns < split + 2)).astype(np.int32),
            "targets": targets,
            "weights": weights,
            "text_weights": text_weights(targets, weights, vocab),
        }

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(targets[weights == 0]), vocab.decode(targets[weights > 0]))
            for targets, weights in zip(features["targets"], features["weights"], strict=True)
        ]


def _piece(tokens, start, stop, some, vocab):
    """(ids [B, W + 1], segments): tokens from start to stop and eos where `some`, else padding."""
    width = tokens.shape[1]
    columns = np.arange(width + 1)
    length = (stop - start)[:, None]
    source = np.minimum(columns + start[:, None], width - 1)
    ids = np.where(
        columns < length, np.take_along_axis(tokens, source, axis=1), np.int32(vocab.pad)
    )
    real = (columns <= length) & some[:, None]
    ids[real & (columns == length)] = vocab.eos
    return ids, real.astype(np.int32)
