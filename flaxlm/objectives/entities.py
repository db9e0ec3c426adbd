"""Entity spans: names of a list are masked as a whole (Sun et al. 2019, ERNIE of Baidu, sec. 3.2).

names           New York City        New York        Paris
tokens          in [new york city] he met [paris] hilton 's [sister]
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxlm.data.random import RowRandom
from flaxlm.errors import DataError, MissingInput
from flaxlm.objectives.units import Units, choose_spans, text, words

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: of the polynomial that hashes token ids


@dataclass(frozen=True, kw_only=True)
class Entities(Units):
    """A name of the list is one unit, any other word is one.

    Where names overlap, the one with more tokens is taken, and of equally long ones the first.
    Names begin and end with words.

    Attributes:
      path: text file, UTF-8, one name a line.
    """

    path: str

    def choose(self, tokens, segments, numbers, rng: RowRandom, vocab):
        may = text(tokens, segments, vocab)
        starts = words(tokens, may, vocab.word_starts)
        if hasattr(vocab, "encode"):  # else ids without text, when a run is traced
            starts &= ~inside_names(tokens, may, starts, _names(self.path, vocab))
        return choose_spans(may, starts, numbers, 1, rng)


def inside_names(
    tokens: np.ndarray, may: np.ndarray, starts: np.ndarray, names: dict[int, np.ndarray]
) -> np.ndarray:
    """[B, L] bool: the second and later tokens of every name found.

    Args:
      tokens: [B, L] int32.
      may: [B, L] bool, tokens of text; names lie in runs of them.
      starts: [B, L] bool, first tokens of words.
      names: {n: [N, n] int32}, the names of n tokens.
    """
    count, length = tokens.shape
    flat = tokens.ravel()
    # Places where a name may stop: before the next word, a special, or the end of the row.
    open_end = np.ones((count, length + 1), bool)
    open_end[:, :length] = starts | ~may
    # Hashes of the n tokens from each place on, made longer one token at a time.
    hashes = np.zeros((count, length), np.uint64)
    lookups = {}
    for n in range(1, max(names, default=0) + 1):
        if n > length:
            break
        hashes = hashes[:, : length - n + 1] * _FACTOR + tokens[:, n - 1 :].astype(np.uint64)
        if n in names and n > 1:
            lookups[n] = _found(hashes, names[n])
    taken = np.zeros((count, length + 1), bool)
    inside = np.zeros((count, length), bool)
    for n in sorted(lookups, reverse=True):
        row, column = np.nonzero(lookups[n] & starts[:, : length - n + 1] & open_end[:, n:])
        span = column[:, None] + np.arange(n)
        place = row[:, None] * length + span
        free = may.ravel()[place].all(axis=1) & ~taken[row[:, None], span].any(axis=1)
        # The hash only proposes.
        free &= _is_name(flat[place], names[n])
        row, column = row[free], column[free]
        first = _leftmost(row * (length + n) + column, n)
        row, span = row[first][:, None], column[first][:, None] + np.arange(n)
        taken[row, span] = True
        inside[row, span[:, 1:]] = True
    return inside


def _found(hashes: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Where `hashes` are those of names [N, n]."""
    known = np.zeros(len(names), np.uint64)
    for column in names.T:
        known = known * _FACTOR + column.astype(np.uint64)
    known.sort()
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[at] == hashes


def _is_name(spans: np.ndarray, names: np.ndarray) -> np.ndarray:
    """[S] bool: whether spans [S, n] are rows of the names [N, n]."""
    both = np.concatenate([names, spans])
    _, number = np.unique(both, axis=0, return_inverse=True)
    number = number.reshape(-1)
    return np.isin(number[len(names) :], number[: len(names)])


def _leftmost(starts: np.ndarray, size: int) -> np.ndarray:
    """Flags of the spans of `size` that one takes from left to right when none may overlap another
    taken before; `starts` ascend.
    """
    kept = np.zeros(len(starts), bool)
    left = np.arange(len(starts))
    while len(left):
        gap = np.diff(starts[left], prepend=-size)
        first = gap >= size  # nothing in reach before it: it is taken
        kept[left[first]] = True
        last = starts[left][first][np.cumsum(first) - 1]  # the nearest one taken, to the left
        left = left[starts[left] >= last + size]
    return kept


@functools.lru_cache(4)
def _names(path: str, vocab) -> dict[int, np.ndarray]:
    """{n: [N, n] int32}: the names of n tokens, as they are cut at the begin of a text and after a
    space.
    """
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingInput(f"objective.units.path={path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"objective.units.path={path} is not UTF-8") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"objective.units.path={path} has no name: one a line")
    by_length: dict[int, set[tuple[int, ...]]] = {}
    for ids in vocab.encode_batch([*texts, *(" " + name for name in texts)]):
        if len(ids):
            by_length.setdefault(len(ids), set()).add(tuple(ids))
    return {n: np.array(sorted(names), np.int32) for n, names in by_length.items()}
