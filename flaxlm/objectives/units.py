"""What a masked language model masks at once: tokens, words, n-grams of words.

A unit knows how to choose tokens of a row, uniformly and without replacement, up to a number that
the objective sets. Where units are longer than a token, they are taken in random order; one that
would exceed the number is skipped, as in the published code of BERT and ALBERT.

    word starts     1   1    0     0     1   1        four words, six tokens
    tokens          the phil ##har ##mon sat down
"""

import functools
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxlm.data.random import RowRandom
from flaxlm.errors import ConfigError, DataError, MissingInput

_LAST = np.uint32(0xFFFFFFFF)  # key of what may not be chosen
_TURNS = 64  # units of a row looked at between two questions whether any row needs more


class Units(ABC):
    """Which tokens are chosen together."""

    @abstractmethod
    def choose(
        self, tokens: np.ndarray, segments: np.ndarray, numbers: np.ndarray, rng: RowRandom, vocab
    ) -> np.ndarray:
        """[B, L] bool: at most numbers[b] tokens of row b.

        Args:
          tokens, segments: [B, L] int32, specials included; segments are 0 on padding.
          numbers: [B] int64.
          vocab: with `special`, `word_starts` and `unit_starts`.
        """


def text(tokens: np.ndarray, segments: np.ndarray, vocab) -> np.ndarray:
    """[B, L] bool: tokens of text; an unknown word is one, [CLS], [SEP] and padding are not."""
    found = (~vocab.special).take(tokens)
    found &= segments > 0
    return found


@dataclass(frozen=True, kw_only=True)
class Tokens(Units):
    """Single tokens (BERT).

    Attributes:
      specials: [CLS] and [SEP] may be chosen too (RoBERTa, fairseq/data/mask_tokens_dataset.py).
    """

    specials: bool = False

    def choose(self, tokens, segments, numbers, rng, vocab):
        may = segments > 0 if self.specials else text(tokens, segments, vocab)
        return _smallest(rng.bits(tokens.shape[1]), may, numbers)


@dataclass(frozen=True, kw_only=True)
class RareTokens(Units):
    """Single tokens, rare ones more often: with probability proportional to count^-power
    (DistilBERT, published distil/distiller.py; Sanh et al. 2019).

    Attributes:
      path: text file of how often each id occurs in the corpus, id 0 on the first line, as
        `python -m flaxlm.data count FOLDER --out FILE` writes it.
      power: 0 makes all tokens equal.
    """

    path: str
    power: float = 0.7

    def choose(self, tokens, segments, numbers, rng, vocab):
        may = text(tokens, segments, vocab)
        # Exponential variables divided by the weights; the smallest are a weighted draw without
        # replacement (Efraimidis and Spirakis 2006). The bits of positive floats sort as they do.
        uniform = (rng.bits(tokens.shape[1]) >> np.uint32(8)).astype(np.float32)
        uniform += np.float32(0.5)
        keys = -np.log(uniform * np.float32(2.0**-24))
        keys *= _rarity(self.path, self.power, vocab).take(tokens)
        return _smallest(keys.view(np.uint32), may, numbers)


@dataclass(frozen=True, kw_only=True)
class Ngrams(Units):
    """One to `longest` words in a row, n words with probability proportional to 1/n (ALBERT,
    albert/create_pretraining_data.py).

    Where the drawn n would exceed the number, the next smaller that does not is taken; an n-gram
    that overlaps one already taken is dropped. As published, n-grams run on over a [SEP].
    """

    longest: int = 3

    def __post_init__(self):
        if self.longest < 1:
            raise ConfigError(f"objective.units.longest={self.longest}: at least 1 (ALBERT uses 3)")

    def choose(self, tokens, segments, numbers, rng, vocab):
        may = text(tokens, segments, vocab)
        starts = words(tokens, may, vocab.unit_starts)
        return choose_spans(may, starts, numbers, self.longest, rng)


@dataclass(frozen=True, kw_only=True)
class WholeWords(Units):
    """All tokens of a word (BERT's whole word masking)."""

    def choose(self, tokens, segments, numbers, rng, vocab):
        may = text(tokens, segments, vocab)
        return choose_spans(may, words(tokens, may, vocab.word_starts), numbers, 1, rng)


def words(tokens: np.ndarray, may: np.ndarray, word_starts: np.ndarray) -> np.ndarray:
    """[B, L] bool: the first token of a word; what follows a special or begins a row is one, even
    if its word was cut. `word_starts` [V] bool are the pieces that begin a word.
    """
    starts = word_starts.take(tokens)
    starts[:, 0] = True
    starts[:, 1:] |= ~may[:, :-1]
    starts &= may
    return starts


def choose_spans(
    may: np.ndarray, starts: np.ndarray, numbers: np.ndarray, longest: int, rng: RowRandom
) -> np.ndarray:
    """[B, L] bool: runs of 1 to `longest` units, at most numbers[b] tokens of row b.

    Args:
      may: [B, L] bool, tokens that may be chosen.
      starts: [B, L] bool, the first token of each unit, a subset of `may`; a unit goes on over all
        tokens of `may` up to the next one.
      numbers: [B] int64.
    """
    count, length = may.shape
    first = np.flatnonzero(starts)
    units = np.bincount(first // length, minlength=count)
    most = int(units.max(initial=0))
    # edges[b, u]: tokens of the batch up to unit u of row b; from its last unit on, the row's last.
    # A unit that a row does not have is `most`: it has no tokens and may be followed by others.
    wide = most + longest + 1
    passed = np.cumsum(may.ravel(), dtype=np.int32)
    real = np.arange(most) < units[:, None]
    edges = np.empty((count, wide), np.int32)
    edges[:] = passed[length - 1 :: length, None] + 1
    edges[:, :most][real] = passed.take(first)

    # Draws are as wide as a row, so that a row's know nothing of the rows beside it.
    keys = _packed(rng.bits(length))[:, :most].copy()
    np.copyto(keys, _LAST, where=~real)
    keys.sort(axis=1)
    drawn = _lengths(rng.bits(length)[:, :most], longest).T if longest > 1 else None
    places = np.minimum(keys & np.uint32(_low(length)), np.uint32(most))
    taken = _greedy(places.T, drawn, edges, numbers.astype(np.int32), longest)

    found = np.flatnonzero(taken[:, :most][real])
    sizes = np.diff(edges, axis=1)[:, :most][real].take(found)
    chosen = np.zeros(count * length, bool)
    begin = np.repeat(first.take(found) - (np.cumsum(sizes) - sizes), sizes)
    chosen[begin + np.arange(len(begin))] = True
    return chosen.reshape(count, length)


def _greedy(places, drawn, edges, left, longest: int) -> np.ndarray:
    """[B, U + longest + 1] bool, the units taken. Rows take theirs in turns, all rows at a time.

    Args:
      places: [T, B] unit of each row at each turn.
      drawn: [T, B] how many units in a row to take, or None for one.
      edges: [B, U + longest + 1], see `choose_spans`.
      left: [B] int32 tokens that may be taken.
    """
    count, wide = edges.shape
    edges, taken = edges.ravel(), np.zeros(count * wide, bool)
    row = np.arange(count)
    for begin in range(0, len(places), _TURNS):
        if not left.any():
            break
        at = places[begin : begin + _TURNS] + row * wide
        low = edges.take(at)
        sizes = [edges.take(at + n) - low for n in range(1, longest + 1)]
        if drawn is None:
            good = np.empty(at.shape, bool)
            for size, fits in zip(sizes[0], good, strict=True):
                np.less_equal(size, left, out=fits)
                left = left - size * fits
            taken[at[good]] = True
            continue
        present = sizes[0] > 0
        table = np.stack([np.zeros_like(low), *sizes], axis=1)  # [turns, longest + 1, B]
        for turn, place in enumerate(at):
            size = table[turn]
            fits = np.count_nonzero(size[1:] <= left, axis=0)
            n = np.minimum(drawn[begin + turn], fits) * present[turn]
            clash = taken[place]
            for k in range(1, longest):
                clash |= taken[place + k] & (n > k)
            n[clash] = 0
            left = left - size[n, row]
            for k in range(longest):
                taken[place[n > k] + k] = True
    return taken.reshape(count, wide)


def _lengths(bits: np.ndarray, longest: int) -> np.ndarray:
    """Each 1 to `longest`, n with probability proportional to 1/n."""
    shares = 1 / np.arange(1, longest + 1)
    ends = np.cumsum(shares / shares.sum())[:-1] * 2.0**32
    return 1 + sum((bits >= np.uint32(end)).astype(np.int32) for end in ends)


def _low(length: int) -> int:
    """A mask of the bits that hold a place; never all ones for one of `length` places."""
    return (1 << length.bit_length()) - 1


def _packed(keys: np.ndarray) -> np.ndarray:
    """[B, L] uint32 keys whose low bits say their place: all different, and sorting them sorts the
    places. 22 random bits are left at L = 512.
    """
    length = keys.shape[1]
    return (keys & ~np.uint32(_low(length))) | np.arange(length, dtype=np.uint32)


def _smallest(keys: np.ndarray, may: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """[B, L] bool: the numbers[b] tokens of `may` that have the smallest keys [B, L] uint32."""
    keys = _packed(keys)
    np.copyto(keys, _LAST, where=~may)
    most = int(numbers.max(initial=0))
    if most == 0:
        return np.zeros(keys.shape, bool)
    lowest = np.sort(np.partition(keys, most - 1, axis=1)[:, :most], axis=1)
    # A key is never _LAST, so a row with fewer tokens than its number takes them all.
    bound = np.take_along_axis(lowest, np.maximum(numbers - 1, 0)[:, None], axis=1)
    chosen = keys <= np.minimum(bound, _LAST - np.uint32(1))
    if numbers.min() == 0:
        chosen[numbers == 0] = False
    return chosen


@functools.lru_cache(4)
def _rarity(path: str, power: float, vocab) -> np.ndarray:
    """[V] float32: count^power of each id, at least 1: what a waiting time is multiplied by."""
    if not hasattr(vocab, "encode"):  # ids without text, when a run is traced
        return np.ones(vocab.size, np.float32)
    try:
        counts = np.loadtxt(Path(os.path.expanduser(path)), dtype=np.float64, ndmin=1)
    except OSError as error:
        raise MissingInput(f"objective.units.path={path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"objective.units.path={path}: one count a line, and nothing else"
        ) from error
    if len(counts) != vocab.pieces:
        raise DataError(
            f"objective.units.path={path} counts {len(counts)} ids, but the vocabulary has "
            f"{vocab.pieces} pieces: count them again with this vocabulary"
        )
    found = np.ones(vocab.size, np.float32)
    found[: vocab.pieces] = np.maximum(counts, 1) ** power
    return found
