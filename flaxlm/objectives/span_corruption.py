"""Span corruption, T5's objective (Raffel et al. 2020, sections 3.1.4 and 3.3.4): fill in the gaps.

    text      Thank you for inviting me to your party last week
    input     Thank you <extra_id_0> me to your party <extra_id_1> week </s>
    target    <extra_id_0> for inviting <extra_id_1> last </s>

As in the published code, and unlike the paper's figure, no sentinel closes the target. A row is one
text, also where several documents share it (T5 concatenates documents before it cuts windows):
spans may cross a boundary and attention does. `Data.packing = "split"` gives every document rows of
its own.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Example
from flaxlm.objectives.tokens import (
    EncoderDecoderObjective,
    shift_right,
    text_weights,
)


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(EncoderDecoderObjective):
    """T5's span corruption for an encoder-decoder.

    Attributes:
      rate: share of the tokens that is dropped, in (0, 1).
      mean_length: mean tokens of a dropped span, at least 1.
      roll: rotate the spans of a row by a random offset. Without it a row never begins with a span
        and always ends with one, which matters for rows so short that they hold a single span.
    """

    rate: float = 0.15
    mean_length: float = 3.0
    roll: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise ConfigError(f"objective.rate={self.rate} must be between 0 and 1 (T5 uses 0.15)")
        if not self.mean_length >= 1:
            raise ConfigError(
                f"objective.mean_length={self.mean_length} must be 1 or more (T5 uses 3)"
            )
        if self.rate > self.mean_length * (1 - self.rate):
            raise ConfigError(
                f"objective.rate={self.rate} with objective.mean_length={self.mean_length} asks "
                "for more spans than there are tokens to keep them apart; mean_length must be "
                f"{self.rate / (1 - self.rate):.4g} or more"
            )

    def counts(self, tokens):
        """(noise tokens, noise spans) of texts of `tokens` tokens, an int or an array.

        Not random; halves round to even. One token alone has no noise. In float64, as the published
        length arithmetic: the published mask uses fp32, which differs by a token at few lengths
        (190, 350, ...) and then overflows the lengths that were computed for it.
        """
        tokens = np.asarray(tokens)
        noise = np.clip(np.rint(tokens * self.rate).astype(np.int64), 1, np.maximum(tokens, 2) - 1)
        spans = np.maximum(np.rint(noise / self.mean_length).astype(np.int64), 1)
        # Rounding may ask for one more than there are tokens to keep them apart.
        spans = np.minimum(spans, np.maximum(tokens - noise, 1))
        some = tokens > 1
        return noise * some, spans * some

    def lengths(self, tokens):
        """(input, target) positions that `tokens` tokens need: text or noise, sentinels, eos.

        >>> [int(length) for length in SpanCorruption().lengths(568)]
        [512, 114]
        """
        noise, spans = self.counts(tokens)
        # A roll can cut one run, kept or dropped, in two: one more sentinel on either side.
        spans = np.maximum(spans, 1) + self.roll
        return tokens - noise + spans + 1, noise + spans + 1

    def window(self, length: int) -> int:
        """Raw tokens whose corrupted input has `length` positions: 568 for 512."""
        candidates = np.arange(1, int(length / (1 - self.rate)) + 2)
        inputs, targets = self.lengths(candidates)
        fits = np.flatnonzero(inputs <= length)
        if not len(fits):
            raise ConfigError(
                f"data.length={length} is too short for span corruption: it needs at least 4"
            )
        # At a rate of one half the published code prefers targets that are no longer than inputs.
        return int(candidates[fits[-1]] - (self.rate == 0.5 and targets[fits[-1]] > length))

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features of an encoder-decoder: tokens, segments, decoder_*, targets and weights.

        Their widths are `lengths(W)`: fixed, as the counts of noise tokens and spans are. Rows that
        end in padding are corrupted up to it.

        Raises:
          ConfigError: if a row has more spans than the vocabulary has sentinels.
        """
        width = rows.tokens.shape[1]
        spans = int(self.counts(width)[1]) + self.roll
        if spans > len(vocab.sentinels):
            raise ConfigError(
                f"rows of {width} tokens have {spans} spans but the vocabulary has "
                f"{len(vocab.sentinels)} sentinels; set data.vocabulary.sentinels to {spans} or "
                "more, raise objective.mean_length or lower data.length"
            )
        tokens = np.count_nonzero(rows.segments, axis=1)
        noise = self.noise(tokens, width, rng)
        text = ~noise
        if tokens.min(initial=width) < width:
            text &= np.arange(width) < tokens[:, None]
        input_length, target_length = (int(length) for length in self.lengths(width))
        inputs, input_lengths = _fold(rows.tokens, text, noise, input_length, vocab)
        targets, target_lengths = _fold(rows.tokens, noise, text, target_length, vocab)
        decoder_segments = _within(target_lengths, target_length)
        return {
            "tokens": inputs,
            "segments": _within(input_lengths, input_length),
            "decoder_tokens": shift_right(targets, vocab.pad),
            "decoder_segments": decoder_segments,
            "targets": targets,
            "weights": decoder_segments.astype(np.float32),
            "text_weights": text_weights(targets, decoder_segments, vocab),
        }

    def noise(self, tokens: np.ndarray, width: int, rng: RowRandom) -> np.ndarray:
        """[B, width] bool, True where a token is dropped; row b holds tokens[b] <= width tokens.

        Noise and text are each cut uniformly at random into as many parts as there are spans, and
        the parts alternate, text first (`random_spans_noise_mask` of the published code).
        """
        noise, spans = self.counts(tokens)
        # Of the width, not of the batch: a row's draws know nothing of the rows beside it.
        most = max(int(self.counts(width)[1]), 1)
        runs = np.empty((len(tokens), 2 * most + 1), np.int64)
        runs[:, 0:-1:2] = _random_parts(rng, tokens - noise, spans, most)
        runs[:, 1:-1:2] = _random_parts(rng, noise, spans, most)
        runs[:, -1] = width - tokens
        kinds = np.zeros(runs.shape, bool)
        kinds[:, 1:-1:2] = True
        mask = np.repeat(kinds.ravel(), runs.ravel()).reshape(len(tokens), width)
        if self.roll:
            turn = np.maximum(tokens, 1)[:, None]
            columns = np.arange(width)
            source = np.where(columns < turn, (columns - rng.integers(turn, 1)) % turn, columns)
            mask = np.take_along_axis(mask, source, axis=1)
        return mask

    def invert(self, input_ids: np.ndarray, target_ids: np.ndarray, vocab) -> np.ndarray:
        """The text that was corrupted: the token ids of one row, from its input and target ids."""
        kept = _split_at_sentinels(input_ids, vocab)
        dropped = _split_at_sentinels(target_ids, vocab)
        # Whichever side has the first token has no sentinel before it; the other side's first piece
        # is what stands before its first sentinel: nothing.
        first, second = (kept, dropped[1:]) if len(kept[0]) else (dropped, kept[1:])
        both = itertools.zip_longest(first, second, fillvalue=np.empty(0, np.int32))
        return np.concatenate([piece for pair in both for piece in pair])

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(tokens[segments > 0]), vocab.decode(targets[weights > 0]))
            for tokens, segments, targets, weights in zip(
                *(features[name] for name in ("tokens", "segments", "targets", "weights")),
                strict=True,
            )
        ]


def _random_parts(rng: RowRandom, items: np.ndarray, parts: np.ndarray, most: int) -> np.ndarray:
    """[B, most] sizes of parts[b] random parts of items[b] items, then zeros.

    Parts have at least one item and every partition is equally likely. A partition is a set of
    parts - 1 cuts among items - 1 places. Floyd's method (Bentley and Floyd 1987) draws such a set
    with exactly one number per cut, so a row costs tens of random numbers instead of hundreds.
    """
    count = len(items)
    cuts = np.empty((count, most + 1), np.int64)
    cuts[:, 0] = 0
    cuts[:, most] = items
    if most > 1:
        places = (items - parts)[:, None] + np.arange(1, most)  # a turn's cut is in [1, places]
        draws = rng.integers(np.maximum(places, 1), most - 1) + 1
        width = int(items.max(initial=0)) + most
        taken = np.zeros(count * width, bool)
        base = np.arange(count) * width
        for turn in range(most - 1):
            place = places[:, turn]
            cut = np.where(taken[base + draws[:, turn]], place, draws[:, turn])
            taken[base + cut] = True
            cuts[:, turn + 1] = cut
        # A row of fewer parts makes its cuts in its first turns; the others part nothing.
        np.copyto(cuts[:, 1:most], items[:, None], where=np.arange(1, most) >= parts[:, None])
        cuts[:, 1:most].sort(axis=1)
    return np.diff(cuts, axis=1)


def _fold(tokens, keep, drop, length, vocab):
    """Rows in which every run of `drop` becomes the next sentinel, closed by eos.

    Args:
      tokens: [B, W] ids.
      keep, drop: [B, W] bool, disjoint; where both are False is padding.
      length: positions of the result, eos included.

    Returns:
      (ids [B, length] int32, positions in use [B]); a row without tokens has no eos either.
    """
    starts = drop.copy()
    starts[:, 1:] &= ~drop[:, :-1]
    at = np.flatnonzero(starts)
    runs = np.count_nonzero(starts, axis=1)
    rank = np.arange(len(at)) - np.repeat(np.cumsum(runs) - runs, runs)
    marked = tokens.copy()
    marked.ravel()[at] = vocab.sentinels[rank]
    taken = keep | starts
    used = np.count_nonzero(taken, axis=1)
    if used.min(initial=length) == length - 1:  # all rows full: two copies less
        ids = np.empty((len(tokens), length), np.int32)
        ids[:, :-1] = marked[taken].reshape(len(tokens), -1)
    else:
        ids = np.full((len(tokens), length), vocab.pad, np.int32)
        ids[np.arange(length) < used[:, None]] = marked[taken]
    some = np.flatnonzero(used)
    ids[some, used[some]] = vocab.eos
    return ids, used + (used > 0)


def _within(lengths: np.ndarray, width: int) -> np.ndarray:
    """[B, width] int32, 1 on the first lengths[b] positions of row b."""
    return (np.arange(width) < lengths[:, None]).astype(np.int32)


def _split_at_sentinels(ids: np.ndarray, vocab) -> list[np.ndarray]:
    ids = np.asarray(ids)
    ids = ids[: np.flatnonzero(ids == vocab.eos)[-1]]
    marks = np.flatnonzero(np.isin(ids, vocab.sentinels))
    return [piece[i > 0 :] for i, piece in enumerate(np.split(ids, marks))]
