"""Noise for denoising objectives: functions from texts to corrupted texts (BART, Lewis et al. 2020,
section 2.2, in the arithmetic of fairseq's denoising_dataset.py).

    text         The cat sat on the ma t          seven pieces, six words
    mask         The _ sat on the _ t             pieces become <mask>
    infill       The _ on _                       spans of words become one <mask> each
    delete       The cat on the t                 pieces vanish
    insert       The _ cat sat on _ the ma t      a <mask> comes in between
    rotate       on the ma t The cat sat          the text begins elsewhere

All numbers that are drawn depend on the width of the window and the row's number, never on what the
rows beside it hold.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from flaxlm.data.random import RowRandom


@dataclass(frozen=True)
class Texts:
    """Texts one after the other, specials at their ends not included. `N` tokens, `B` texts.

    Attributes:
      ids: [N] int32.
      lengths: [B] int64.
      width: no text is longer; what is drawn for a text has this size.
    """

    ids: np.ndarray
    lengths: np.ndarray
    width: int

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """[B + 1] where each text begins, and the end of the last."""
        return _bounds(self.lengths)

    @functools.cached_property
    def row(self) -> np.ndarray:
        """[N] the text of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def only(self, keep: np.ndarray) -> "Texts":
        """The tokens where `keep` [N] is True."""
        kept = np.flatnonzero(keep)
        lengths = np.diff(np.searchsorted(kept, self.bounds))
        return replace(self, ids=self.ids.take(kept), lengths=lengths)


def mask(texts: Texts, share: float, random: float, rng: RowRandom, vocab) -> Texts:
    """A share of the tokens of each text, rounded up, becomes <mask> or, a share `random` of
    these, a random id.
    """
    picks = _budget(texts.lengths, share)
    chosen, _ = _choose(texts.lengths, picks, texts.width, rng)
    most = int(_budget(np.array(texts.width), share))
    ids = texts.ids.copy()
    ids[chosen] = _fillers(_real(rng.uniform(most), picks), random, vocab)
    return replace(texts, ids=ids)


def delete(texts: Texts, share: float, rng: RowRandom) -> Texts:
    """A share of the tokens of each text, rounded up, vanishes."""
    chosen, _ = _choose(texts.lengths, _budget(texts.lengths, share), texts.width, rng)
    keep = np.ones(len(texts.ids), bool)
    keep[chosen] = False
    return texts.only(keep)


def infill(
    texts: Texts, share: float, mean_length: float, random: float, rng: RowRandom, vocab
) -> Texts:
    """Spans of whole words become one <mask> each, or one random id for a share `random` of them.

    Lengths are drawn from a Poisson distribution until they cover `share` of a text's words,
    rounded up, and the last is cut to cover just that. Spans begin at words drawn without
    replacement; where two overlap, the mask of the later one is covered by the earlier. Spans of
    length 0 are <mask>s put in anywhere. Texts that grow over the width lose their end.
    """
    words = np.flatnonzero(vocab.word_starts.take(texts.ids, mode="clip") | _firsts(texts))
    bounds = np.searchsorted(words, texts.bounds)  # of the words of each text
    counts = np.diff(bounds)
    budget = _budget(counts, share)
    most = _most_spans(math.ceil(texts.width * share), mean_length)
    lengths = np.searchsorted(_poisson(mean_length), rng.uniform(most), side="right")
    total = np.cumsum(lengths, axis=1)
    last = np.minimum((total < budget[:, None]).sum(axis=1), most - 1)[:, None]
    np.put_along_axis(
        lengths, last, budget[:, None] - np.take_along_axis(total - lengths, last, axis=1), axis=1
    )
    used = (np.arange(most) <= last) & (budget > 0)[:, None]
    covering = used & (lengths > 0)

    chosen, row = _choose(counts, covering.sum(axis=1), texts.width, rng)
    stop_word = chosen + lengths[covering]
    ends = np.append(words, len(texts.ids))  # the end of a text is the first word of the next
    begin, stop = words[chosen], ends[np.minimum(stop_word, bounds[row + 1])]
    steps = np.bincount(begin + 1, minlength=len(texts.ids) + 1)
    steps -= np.bincount(stop, minlength=len(texts.ids) + 1)
    ids = texts.ids.copy()
    ids[begin] = _fillers(rng.uniform(most)[covering], random, vocab)
    kept = replace(texts, ids=ids).only(np.cumsum(steps)[:-1] == 0)
    return _cut(_insert(kept, (used & ~covering).sum(axis=1), most, random, rng, vocab))


def insert(texts: Texts, share: float, random: float, rng: RowRandom, vocab) -> Texts:
    """A share of each text's length, rounded up, is put in at random places: <mask>s and, a share
    `random` of these, rounded up, random ids. As published the length counts the text's two ends.
    """
    counts = np.ceil((texts.lengths + 2) * share).astype(np.int64) * (texts.lengths > 0)
    most = most_inserted(texts.width, share)
    grown = _insert(texts, counts, most, random, rng, vocab)
    return replace(grown, width=texts.width + most)


def most_inserted(width: int, share: float) -> int:
    """Tokens that `insert` puts in a text of `width` tokens."""
    return math.ceil((width + 2) * share)


def rotate(texts: Texts, probability: float, rng: RowRandom) -> Texts:
    """With this probability a text begins at a random one of its tokens, or stays as it is, and
    what was before comes after.
    """
    turned = rng.uniform(1)[:, 0] < probability
    by = rng.integers(texts.lengths[:, None] + 1, 1)[:, 0] * turned
    source = np.arange(len(texts.ids)) + by[texts.row]
    ends = texts.bounds[1:][texts.row]
    source = np.where(source >= ends, source - texts.lengths[texts.row], source)
    return replace(texts, ids=texts.ids[source])


def _bounds(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _firsts(texts: Texts) -> np.ndarray:
    """[N] bool, the first token of each text: it begins a word whatever it is."""
    first = np.zeros(len(texts.ids) + 1, bool)
    first[texts.bounds[:-1]] = True
    return first[:-1]


def _budget(counts: np.ndarray, share: float) -> np.ndarray:
    """counts * share, rounded up; in fp32 as published: a product may round to a whole number."""
    return np.ceil(counts.astype(np.float32) * np.float32(share)).astype(np.int64)


@functools.lru_cache(64)
def _poisson(mean: float) -> np.ndarray:
    """Cumulative probabilities of 0, 1, ...; as published the table ends at the first value below
    1e-7.
    """
    found = []
    while not found or found[-1] >= 1e-7:
        k = len(found)
        found.append(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)))
    return np.cumsum(found[:-1]) / sum(found)


@functools.lru_cache(64)
def _most_spans(budget: int, mean: float) -> int:
    """Lengths to draw so that their sum reaches the budget but once in 10^11 texts (then the last
    span takes the rest).
    """
    return math.ceil((3.5 + math.sqrt(12.25 + budget)) ** 2 / mean) + 8


def _real(drawn: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first counts[b] entries of each row [B, W], one row after the other."""
    if counts.min(initial=drawn.shape[1]) == drawn.shape[1]:
        return drawn.ravel()
    return drawn[np.arange(drawn.shape[1]) < counts[:, None]]


def _choose(counts: np.ndarray, picks: np.ndarray, width: int, rng: RowRandom):
    """picks[b] of the counts[b] items of each text, without replacement, in random order.

    Returns:
      (indices of the items, counted through all texts; their texts), both [sum of picks].
    """
    assert len(counts) <= 1 << 16 and width <= 1 << 16
    row = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    bounds = _bounds(counts)
    item = np.arange(len(row), dtype=np.uint64) - np.repeat(bounds[:-1], counts).astype(np.uint64)
    # One number to sort by text, then by chance, that still tells which item it belongs to.
    keys = row << np.uint64(48) | item
    keys |= _real(rng.bits(width), counts).astype(np.uint64) << np.uint64(16)
    keys.sort()
    text = np.repeat(np.arange(len(counts)), picks)
    place = np.arange(len(text)) - _bounds(picks)[text] + bounds[text]
    return (keys[place] & np.uint64(0xFFFF)).astype(np.int64) + bounds[text], text


def _fillers(uniform: np.ndarray, random: float, vocab) -> np.ndarray:
    """<mask>, or with probability `random` an id uniform in [1, pieces), from uniform numbers."""
    ids = np.full(len(uniform), vocab.mask, np.int32)
    if random:
        hit = uniform < random
        ids[hit] = 1 + (uniform[hit] / random * (vocab.pieces - 1)).astype(np.int32)
    return ids


def _insert(texts: Texts, counts, most: int, random: float, rng: RowRandom, vocab) -> Texts:
    """counts[b] <= most tokens at random places of each text: the first of them, a share `random`
    rounded up, random ids, the others <mask>.
    """
    turns = np.arange(most)
    places = rng.integers(texts.lengths[:, None] + turns + 1, most)
    fillers = rng.uniform(most)
    highest = int(counts.max(initial=0))
    if not highest:
        return texts
    # Each finds its place among the tokens and those that came in before it, and moves those
    # behind it by one: so every arrangement is equally likely.
    places, turns = np.asfortranarray(places[:, :highest]), turns[:highest]
    used = turns < counts[:, None]
    for turn in range(1, highest):
        places[:, :turn] += (places[:, :turn] >= places[:, turn, None]) & used[:, turn, None]
    row = np.nonzero(used)[0]
    lengths = texts.lengths + counts
    at = _bounds(lengths)[row] + places[used]
    is_random = (turns < np.ceil(counts * random)[:, None])[used]
    old = np.ones(int(lengths.sum()), bool)
    old[at] = False
    ids = np.empty(len(old), np.int32)
    ids[old] = texts.ids
    ids[at] = np.where(
        is_random,
        1 + (fillers[:, :highest][used] * (vocab.pieces - 1)).astype(np.int32),
        np.int32(vocab.mask),
    )
    return replace(texts, ids=ids, lengths=lengths)


def _cut(texts: Texts) -> Texts:
    """Without what exceeds the width."""
    if texts.lengths.max(initial=0) <= texts.width:
        return texts
    return texts.only(np.arange(len(texts.ids)) - texts.bounds[texts.row] < texts.width)
