"""Two texts as the input of a masked model.

    [CLS] A [SEP] B [SEP]      types 0 0 0 1 1, label: is B what follows A

`NextSentence` is BERT's pair (Devlin et al. 2019, section 3.1, as bert/create_pretraining_data.py
makes it), `SentenceOrder` is ALBERT's (Lan et al. 2020, section 3.1). Liu et al. 2019 (section 4.2)
compare four formats: segment-pair is `NextSentence()`, sentence-pair `NextSentence(single=True)`;
full-sentences and doc-sentences are one text each (`objectives.layouts.OneText`), told apart by
`Data.packing`, "full_sentences" or "sentences". `Halves` is ELECTRA's pair, which has no label.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.objectives.layouts import Layout, places
from flaxlm.objectives.sentence_permutation import sentence_table

# Rows of a pair are this much wider than the pair, but no more than a quarter: about a sentence.
# Texts are filled until they reach their length and are then cut to it, as published; if rows were
# no wider, real pairs would end with a whole sentence, random ones in the middle of one, and a
# model would learn to look for the full stop.
_SPARE = 24


@dataclass(frozen=True, kw_only=True)
class Pairs(Layout):
    """[CLS] A [SEP] B [SEP] out of whole sentences.

    Attributes:
      short: share of the pairs that are filled to a length drawn from [2, length - 3] only; the
        others fill all positions.
    """

    partners = 1
    labelled = True
    packings = ("sentences", "split")
    short: float = 0.1

    def __post_init__(self):
        if not 0 <= self.short <= 1:
            raise ConfigError(
                f"objective.pairs.short={self.short}: a share, 0 to 1 (BERT uses 0.1)"
            )

    def window(self, length: int) -> int:
        """Raw tokens: all positions but three, and about a sentence to spare."""
        return _window(length)

    def separator(self, vocab) -> None:
        return None

    @abstractmethod
    def texts(self, rows: Rows, limit: int, rng: RowRandom) -> tuple[np.ndarray, np.ndarray]:
        """Where A and B are read and what they are to one another.

        Returns:
          (spans [B, 4] int64: start and stop of A, start and stop of B, where the partner's places
          begin at W; labels [B] int32).
        """

    def lay_out(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        (partner,) = rows.partners
        limit = _limit(rows.tokens.shape[1])
        spans, labels = self.texts(rows, limit, rng)
        a, b = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
        fronts, pops = _pops(a, b, limit, rng)
        a_start, b_start = (spans[:, ::2] + fronts).T
        a, b = a - pops[:, 0], b - pops[:, 1]

        both = np.concatenate([rows.tokens, partner.tokens], axis=1)
        features = _joined(both, a_start, a, b_start, b, limit + 3, vocab)
        return {
            **features,
            "labels": np.where(a > 0, labels, 0).astype(np.int32),
            "label_weights": (a > 0).astype(np.float32),
        }


@dataclass(frozen=True, kw_only=True)
class NextSentence(Pairs):
    """Label 0: B goes on where A ends; 1: B is from another row of the corpus.

    A is a random number of the row's first sentences. B is, with probability 1/2 and always for a
    row of one sentence, text of the partner row; else the sentences after A. A random B begins at a
    random sentence among those that leave enough text for it.

    Attributes:
      single: A and B are one sentence each (RoBERTa's sentence-pair), A anywhere in the row.
    """

    single: bool = False

    def texts(self, rows, limit, rng):
        begins, count = sentence_table(rows)
        other, other_count = sentence_table(rows.partners[0])
        width = rows.tokens.shape[1]
        if self.single:
            first = rng.integers(np.maximum(count - 1, 1)[:, None], 1)[:, 0]
            coin, pick = rng.bits(1)[:, 0], rng.integers(np.maximum(other_count, 1)[:, None], 1)
            spans = _at(begins, [first, first + 1, first + 1, first + 2], count)
            random = (count < 2) | (coin < 1 << 31)
            drawn = _at(other, [pick[:, 0], pick[:, 0] + 1], other_count)
        else:
            spans, target = _consecutive(begins, count, limit, self.short, rng)
            random = (spans[:, 3] == spans[:, 2]) | (rng.bits(1)[:, 0] < 1 << 31)
            drawn = _random_text(other, other_count, target - spans[:, 1], rng)
        spans[:, 2:] = np.where(random[:, None], width + drawn, spans[:, 2:])
        return spans, random.astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class SentenceOrder(Pairs):
    """Label 0: B goes on where A ends; 1: they are swapped, with probability 1/2.

    A row of one sentence has nothing to swap. As in the published code it takes a random text of
    the partner row for its B, with label 1.
    """

    def texts(self, rows, limit, rng):
        begins, count = sentence_table(rows)
        other, other_count = sentence_table(rows.partners[0])
        spans, target = _consecutive(begins, count, limit, self.short, rng)
        alone = spans[:, 3] == spans[:, 2]
        swapped = ~alone & (rng.bits(1)[:, 0] < 1 << 31)
        drawn = _random_text(other, other_count, target - spans[:, 1], rng)
        spans[:, 2:] = np.where(alone[:, None], rows.tokens.shape[1] + drawn, spans[:, 2:])
        spans = np.where(swapped[:, None], spans[:, [2, 3, 0, 1]], spans)
        return spans, (swapped | alone).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Halves(Layout):
    """Two texts that follow one another, or one; without a label (ELECTRA, Clark et al. 2020,
    build_pretraining_dataset.py).

    A is the row's first sentence and those after it that do not fill half of the positions; the
    one that does goes to A or B by a fair coin. What is too long loses its end. (As published, a
    short sentence could go back to A after a longer one went to B; here A stays in one piece.)

    Attributes:
      single: share of the rows that are one text.
      short: share that is filled to a length drawn from [5, length] only.
    """

    single: float = 0.1
    short: float = 0.05
    packings = ("sentences", "split")

    def __post_init__(self):
        if not (0 <= self.single <= 1 and 0 <= self.short <= 1):
            raise ConfigError(
                f"objective.pairs.single={self.single} and objective.pairs.short={self.short} are "
                "shares, 0 to 1 (ELECTRA uses 0.1 and 0.05)"
            )

    def window(self, length: int) -> int:
        """As `Pairs.window`."""
        return _window(length)

    def separator(self, vocab) -> None:
        return None

    def lay_out(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        count, length = len(rows), _limit(rows.tokens.shape[1]) + 3
        begins, sentences = sentence_table(rows)
        single, short, coin = (rng.uniform(3) < [self.single, self.short, 0.5]).T
        drawn = 5 + rng.integers(length - 4, 1)[:, 0]
        target = np.where(short, drawn, length)
        used = np.count_nonzero(begins[:, 1:] < target[:, None], axis=1) + 1
        half = np.where(single, length + begins[:, -1], (target - 3) // 2)
        fit = np.count_nonzero(begins[:, 1:] < half[:, None], axis=1)
        first = np.minimum(np.maximum(fit + ((fit > 0) & coin), 1), used)
        split, stop = _at(begins, [first, used], sentences).T
        a = np.minimum(split, length - 2)
        b = np.clip(length - a - 3, 0, stop - split)
        return _joined(rows.tokens, np.zeros(count, np.int64), a, split, b, length, vocab)


def _joined(tokens, a_start, a, b_start, b, length: int, vocab) -> Features:
    """[CLS] A [SEP] B [SEP] out of spans of `tokens` [B, N]: A is a[i] tokens from a_start[i] on.
    Without B there is one [SEP], without A nothing.
    """
    used = np.where(a > 0, a + 2 + (b > 0) * (b + 1), 0)
    columns = np.arange(length, dtype=np.int32)
    row = np.arange(len(a))
    base = row * tokens.shape[1]
    second = columns > (a + 1).astype(np.int32)[:, None]
    index = np.where(
        second,
        (base + b_start - a - 2).astype(np.int32)[:, None],
        (base + a_start - 1).astype(np.int32)[:, None],
    )
    index += columns
    ids = tokens.ravel().take(index, mode="clip")
    ids[:, 0] = vocab.cls
    ids[row, a + 1] = vocab.sep
    ids[row, np.maximum(used, 1) - 1] = vocab.sep
    where = places(used, length)
    ids[where["segments"] == 0] = vocab.pad
    return {"tokens": ids, **where, "types": second * where["segments"]}


def _window(length: int) -> int:
    if length < 5:
        raise ConfigError(
            f"data.length={length} is too short for [CLS] A [SEP] B [SEP]: at least 5"
        )
    return length - 3 + min(_SPARE, (length - 3) // 4)


def _limit(width: int) -> int:
    """The inverse of `_window`: tokens of A and B together, from the width of a row."""
    candidates = np.arange(1, width + 1)
    wide = candidates + np.minimum(_SPARE, candidates // 4)
    return int(candidates[np.searchsorted(wide, width, side="right") - 1])


def _at(table: np.ndarray, places: list[np.ndarray], count: np.ndarray) -> np.ndarray:
    """[B, n] begins of the sentences `places`; of those from `count` on, the end of the text."""
    return np.take_along_axis(table, np.minimum(np.stack(places, 1), count[:, None]), axis=1)


def _consecutive(begins, count, limit: int, short: float, rng: RowRandom):
    """A and B one after the other, cut between sentences.

    Returns:
      (spans [B, 4], B empty for rows of one sentence; target length [B]).
    """
    drawn = 2 + rng.integers(max(limit - 1, 1), 1)[:, 0]
    target = np.where(rng.uniform(1)[:, 0] < short, drawn, limit)
    used = np.minimum(np.count_nonzero(begins[:, 1:] < target[:, None], axis=1) + 1, count)
    split = 1 + rng.integers(np.maximum(used - 1, 1)[:, None], 1)[:, 0]
    return _at(begins, [np.zeros_like(split), split, split, np.maximum(used, split)], count), target


def _random_text(begins, count, wanted: np.ndarray, rng: RowRandom) -> np.ndarray:
    """[B, 2] start and stop of at least one sentence, up to the one that reaches wanted[b] tokens.

    The first is drawn among those with as many tokens from there on, else it is the row's first.
    """
    length = begins[:, -1:]
    real = np.arange(begins.shape[1]) < count[:, None]
    enough = np.count_nonzero(real & (length - begins >= wanted[:, None]), axis=1)
    first = rng.integers(np.maximum(enough, 1)[:, None], 1)
    start = np.take_along_axis(begins, first, axis=1)
    short = np.count_nonzero(begins[:, 1:] - start < wanted[:, None], axis=1)
    return _at(begins, [first[:, 0], np.maximum(short, first[:, 0]) + 1], count)


def _pops(a: np.ndarray, b: np.ndarray, limit: int, rng: RowRandom):
    """What two texts of a and b tokens lose until together they have `limit`: token by token, from
    the longer one (from B when they are equal), its front or its back by a fair coin.

    Returns:
      (tokens lost in front [B, 2], tokens lost [B, 2]).
    """
    excess, more = np.maximum(a + b - limit, 0), a - b
    shared = np.maximum(excess - abs(more), 0)  # lost in turns, after the two are equally long
    pops = np.stack(
        [
            np.minimum(excess, np.maximum(more, 0)) + shared // 2,
            np.minimum(excess, np.maximum(-more, 0)) + (shared + 1) // 2,
        ],
        axis=1,
    )
    # The heads of n coins: the bits set among n random ones.
    words = -(-(2 * (limit + _SPARE)) // 32)
    coins = rng.bits(2 * words).reshape(len(a), 2, words)
    thrown = np.clip(pops[:, :, None] - 32 * np.arange(words), 0, 32).astype(np.uint64)
    heads = np.bitwise_count(coins & ((np.uint64(1) << thrown) - np.uint64(1)))
    return heads.sum(axis=2, dtype=np.int64), pops
