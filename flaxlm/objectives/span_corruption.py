"""Span corruption, T5's objective (Raffel et al. 2020, sections 3.1.4 and 3.3.4): fill in the gaps.

    text      Thank you for inviting me to your party last week
    input     Thank you <extra_id_0> me to your party <extra_id_1> week </s>
    target    <extra_id_0> for inviting <extra_id_1> last </s>

As in the published code, and unlike the paper's figure, no sentinel closes the target. A row is one
text, also where several documents share it (T5 concatenates documents before it cuts windows):
spans may cross a boundary and attention does. `Data.packing = "split"` gives every document rows of
its own.
"""

import functools
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
        input_length, target_length, most = _shape(self, width)
        spans = most + self.roll
        if spans > len(vocab.sentinels):
            raise ConfigError(
                f"rows of {width} tokens have {spans} spans but the vocabulary has "
                f"{len(vocab.sentinels)} sentinels; set data.vocabulary.sentinels to {spans} or "
                "more, raise objective.mean_length or lower data.length"
            )
        text, noise = self.runs(rows.lengths, width, rng)
        source = _before(text + noise)
        marks = noise > 0, text > 0
        # Input: text, then a sentinel for the noise after it. Target: a sentinel, then that noise.
        inputs, input_lengths = _fold(rows.tokens, source, text, marks[0], 0, input_length, vocab)
        targets, target_lengths = _fold(
            rows.tokens, source + text, noise, marks[1], 1, target_length, vocab
        )
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

    def runs(self, tokens: np.ndarray, width: int, rng: RowRandom) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the runs, (kept, dropped) [B, P], of rows of tokens[b] <= width tokens.

        Row b is kept[b, 0] tokens of text, then dropped[b, 0] of noise, kept[b, 1], and so on. Text
        and noise are each cut uniformly at random into as many parts as there are spans
        (`random_spans_noise_mask` of the published code). Runs that a row does not have are 0.
        """
        noise, spans = self.counts(tokens)
        # Of the width, not of the batch: a row's draws know nothing of the rows beside it.
        _, _, most = _shape(self, width)
        kept, dropped = _random_parts(rng, np.stack([tokens - noise, noise], axis=1), spans, most)
        return _rolled(kept, dropped, spans, rng) if self.roll else (kept, dropped)

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


@functools.lru_cache(64)
def _shape(objective: SpanCorruption, width: int) -> tuple[int, int, int]:
    """(input length, target length, spans, at least 1) of full rows of `width` tokens."""
    inputs, targets = objective.lengths(width)
    return int(inputs), int(targets), max(int(objective.counts(width)[1]), 1)


def _random_parts(rng: RowRandom, items: np.ndarray, parts: np.ndarray, most: int):
    """Sizes of parts[b] random parts of items[b, 0] and of items[b, 1], then zeros: [B, most] each.

    Parts have at least one item and every partition is equally likely. A partition is a set of
    parts - 1 cuts among items - 1 places. Floyd's method (Bentley and Floyd 1987) draws such a set
    with exactly one number per cut, so a row costs tens of random numbers instead of hundreds.
    """
    count = len(items)
    cuts = np.empty((2 * count, most + 1), np.int64)
    items, parts = items.reshape(-1), np.repeat(parts, 2)
    cuts[:, 0] = 0
    cuts[:, most] = items
    if most > 1:
        turns = np.arange(1, most)
        last = np.maximum((items - parts)[:, None] + turns, 1)  # a turn's cut is in [1, last]
        draws = rng.integers(last.reshape(count, -1), 2 * (most - 1)).reshape(2 * count, -1) + 1
        size = int(items.max(initial=0)) + most
        base = np.arange(2 * count) * size
        draws, last = (np.add(x.T, base, order="C") for x in (draws, last))
        taken = np.zeros(2 * count * size, bool)
        for turn in range(most - 1):
            cut = draws[turn]
            np.copyto(cut, last[turn], where=taken.take(cut))
            taken[cut] = True
        cuts[:, 1:most] = (draws - base).T
        # A row of fewer parts makes its cuts in its first turns; the others part nothing.
        np.copyto(cuts[:, 1:most], items[:, None], where=turns >= parts[:, None])
        cuts[:, 1:most].sort(axis=1)
    sizes = (cuts[:, 1:] - cuts[:, :-1]).reshape(count, 2, most)
    return sizes[:, 0], sizes[:, 1]


def _rolled(kept: np.ndarray, dropped: np.ndarray, spans: np.ndarray, rng: RowRandom):
    """The runs of rows turned by a random offset: one pair more, since a run is cut in two."""
    begin = _before(kept + dropped)
    tokens = kept.sum(axis=1) + dropped.sum(axis=1)
    start = rng.integers(np.maximum(tokens, 1)[:, None], 1)  # the token that comes first
    first = np.count_nonzero(begin <= start, axis=1)[:, None] - 1  # and the pair it is in
    passed = start - np.take_along_axis(begin, first, axis=1)
    passed_text = np.minimum(passed, np.take_along_axis(kept, first, axis=1))
    columns = np.arange(kept.shape[1] + 1)
    pairs = np.maximum(spans, 1)[:, None]

    def turned(lengths, passed):
        out = np.take_along_axis(lengths, (first + columns) % pairs, axis=1)
        out[:, :1] -= passed
        return np.where(columns < pairs, out, np.where(columns == pairs, passed, 0))

    return turned(kept, passed_text), turned(dropped, passed - passed_text)


def _before(lengths: np.ndarray) -> np.ndarray:
    """[B, P] sum of the lengths to the left of each."""
    return np.cumsum(lengths, axis=1) - lengths


def _fold(tokens, source, lengths, marked, lead, length, vocab):
    """Rows of runs of tokens, each with a sentinel beside it, closed by eos.

    Args:
      tokens: [B, W] ids.
      source: [B, P] where each run begins in `tokens`.
      lengths: [B, P] of the runs.
      marked: [B, P] bool, whether the run has a sentinel.
      lead: 1 if the sentinel stands before the run, 0 if after it.
      length: positions of the result, eos included.

    Returns:
      (ids [B, length] int32, positions in use [B]); a row without tokens has no eos either.
    """
    count, width = tokens.shape
    blocks = lengths + marked
    begin = _before(blocks)
    used = begin[:, -1] + blocks[:, -1]
    row = np.arange(count)[:, None]
    # Each position of a block is read at one distance; sentinels, eos and padding are set after.
    spread = np.zeros((count, blocks.shape[1] + 1), np.int64)
    spread[:, :-1] = source - begin - lead * marked + row * width
    sizes = np.empty_like(spread)
    sizes[:, :-1] = blocks
    sizes[:, -1] = length - used
    index = np.repeat(spread.ravel(), sizes.ravel()).reshape(count, length)
    index += np.arange(length)
    ids = tokens.ravel().take(index, mode="clip")
    place = begin + row * length if lead else begin + lengths + row * length
    # Only a first run can be without a sentinel and have runs with one after it.
    rank = np.arange(blocks.shape[1]) - ~marked[:, :1]
    if marked.all():
        place, rank = place.ravel(), rank.ravel()
    else:
        place, rank = place[marked], rank[marked]
    ids.ravel()[place] = vocab.sentinels[rank]
    if used.min(initial=length) == length - 1:
        ids[:, -1] = vocab.eos
        return ids, used + 1
    ids[np.arange(length) >= used[:, None]] = vocab.pad
    some = np.flatnonzero(used)
    ids[some, used[some]] = vocab.eos
    return ids, used + (used > 0)


def _within(lengths: np.ndarray, width: int) -> np.ndarray:
    """[B, width] int32, 1 on the first lengths[b] positions of row b."""
    if lengths.min(initial=width) == width:
        return np.ones((len(lengths), width), np.int32)
    return (np.arange(width) < lengths[:, None]).astype(np.int32)


def _split_at_sentinels(ids: np.ndarray, vocab) -> list[np.ndarray]:
    ids = np.asarray(ids)
    ids = ids[: np.flatnonzero(ids == vocab.eos)[-1]]
    marks = np.flatnonzero(np.isin(ids, vocab.sentinels))
    return [piece[i > 0 :] for i, piece in enumerate(np.split(ids, marks))]
