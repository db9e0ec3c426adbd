"""Pieces of documents: how they are put together in bins, and how they are read into rows."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flaxlm.errors import DataError


class Documents(Protocol):
    """What a window needs of a corpus.

    Attributes:
      offsets: [N + 1] int64, tokens before each document; the last entry is the number of tokens.
      sentence_offsets: [S + 1] int64, tokens before each sentence, and all of them; asked for
        where rows are of whole sentences.
      documents: N.
      tokens: tokens of all documents.
      fingerprint: changes when any token does.
    """

    offsets: np.ndarray
    documents: int
    tokens: int
    fingerprint: str
    sentence_offsets: np.ndarray

    def read(self, ids: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """(tokens int32, places of sentence starts int32) of each document."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of documents in the order in which they fill the rows of a batch: [P] each.

    Attributes:
      row: place in the batch, ascending.
      document, start, length: which tokens; a separator is the last token of its document.
    """

    row: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray


class PieceRows:
    """Rows made of pieces, as `flaxlm.data.rows.Rows`; what nobody asks for is not made."""

    partners: "tuple[PieceRows | MixedRows, ...]" = ()
    window: np.ndarray  # these two are set by who knows them
    epoch: np.ndarray

    def __init__(
        self,
        corpus: Documents,
        pieces: Pieces,
        *,
        index: np.ndarray,
        width: int,
        pad: int,
        separator: int | None,
        name: str,
    ):
        """
        Args:
          corpus: to read the documents from, each once.
          pieces: in the order of the rows.
          index: [B] numbers of the rows; what no piece fills is padding.
          width: of the rows.
          pad: its id.
          separator: the last token of every document, beyond what the corpus holds, or None.
          name: of the corpus, for errors.

        Raises:
          DataError: a document is not as long as the corpus's index says.
        """
        self.index, self._pieces, self._width = index, pieces, width
        ids, place = np.unique(pieces.document, return_inverse=True)
        documents = corpus.read(ids)
        sizes = np.fromiter((len(tokens) for tokens, _ in documents), np.int64, len(ids))
        expected = np.asarray(corpus.offsets[ids + 1] - corpus.offsets[ids])
        if (sizes != expected).any():
            bad = int(np.flatnonzero(sizes != expected)[0])
            raise DataError(
                f"{name}: document {ids[bad]} has {sizes[bad]} tokens but its index says "
                f"{expected[bad]}; the corpus is damaged, prepare it again"
            )
        self._documents, self._place = documents, place.tolist()
        # Of each piece: its place among all tokens of the batch, and its end without a separator.
        self._begin = np.cumsum(pieces.length) - pieces.length
        stop = pieces.start + pieces.length
        closed = stop > sizes[place]
        self._stop = stop - closed

        self._total = int(pieces.length.sum())
        self.lengths = np.full(len(index), width)
        if self._total < len(index) * width:
            used = np.bincount(pieces.row, weights=pieces.length, minlength=len(index))
            self.lengths = used.astype(np.int64)
        text = [
            documents[d][0][start:stop]
            for d, start, stop in zip(
                self._place, pieces.start.tolist(), self._stop.tolist(), strict=True
            )
        ]
        tokens = np.concatenate([np.empty(0, np.int32), *text])
        if separator is not None:
            ends = (self._begin + pieces.length - 1)[closed]
            tokens = np.insert(tokens, ends - np.arange(len(ends)), separator)
        self.tokens = self._spread(tokens, pad)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def documents(self) -> list[np.ndarray]:
        """Ids of the documents in each row, in order."""
        row = self._pieces.row
        return np.split(self._pieces.document, np.searchsorted(row, np.arange(1, len(self.index))))

    @functools.cached_property
    def segments(self) -> np.ndarray:
        row = self._pieces.row
        order = np.arange(1, len(row) + 1, dtype=np.int32) - np.searchsorted(row, row)
        return self._spread(np.repeat(order.astype(np.int32), self._pieces.length), 0)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        begin = np.repeat(self._begin.astype(np.int32), self._pieces.length)
        return self._spread(np.arange(self._total, dtype=np.int32) - begin, 0)

    @functools.cached_property
    def sentences(self) -> np.ndarray:
        starts = [self._documents[d][1] for d in self._place]
        counts = np.fromiter(map(len, starts), np.int64, len(starts))
        at = np.concatenate([np.empty(0, np.int64), *starts])
        start, stop = np.repeat(self._pieces.start, counts), np.repeat(self._stop, counts)
        place = at + np.repeat(self._begin - self._pieces.start, counts)
        flags = np.zeros(self._total, bool)
        flags[place[(at >= start) & (at < stop)]] = True
        return self._spread(flags, False)

    def _spread(self, values: np.ndarray, fill) -> np.ndarray:
        """[B, W] from the values of the batch's tokens in order."""
        count = len(self.index)
        if self._total == count * self._width:
            return values.reshape(count, self._width)
        out = np.full((count, self._width), fill, values.dtype)
        out[np.arange(self._width) < self.lengths[:, None]] = values
        return out


class MixedRows:
    """Rows of a batch that come from several corpora, as `flaxlm.data.rows.Rows`."""

    partners: "tuple[PieceRows | MixedRows, ...]" = ()
    window: np.ndarray
    epoch: np.ndarray

    def __init__(self, index: np.ndarray, parts: Sequence[tuple[np.ndarray, PieceRows]]):
        """`parts`: (places in the batch, rows that belong there), which together fill the batch."""
        self.index = index
        self._parts = parts

    def __len__(self) -> int:
        return len(self.index)

    tokens = functools.cached_property(lambda self: self._joined("tokens"))
    segments = functools.cached_property(lambda self: self._joined("segments"))
    positions = functools.cached_property(lambda self: self._joined("positions"))
    sentences = functools.cached_property(lambda self: self._joined("sentences"))
    lengths = functools.cached_property(lambda self: self._joined("lengths"))

    def _joined(self, name: str) -> np.ndarray:
        values = [getattr(rows, name) for _, rows in self._parts]
        out = np.empty((len(self.index), *values[0].shape[1:]), values[0].dtype)
        for (places, _), part in zip(self._parts, values, strict=True):
            out[places] = part
        return out


def best_fit(sizes: np.ndarray, width: int) -> np.ndarray:
    """[P] the bin of each piece, under best-fit decreasing: largest piece first, into the bin it
    fills best.

    Bins with equal room are interchangeable, so all pieces of one size go at once: the work in
    Python depends on the width, not on the number of pieces. Bins are numbered from 0 in the order
    of opening.

    Args:
      sizes: [P] in [1, width].
    """
    # numpy sorts 16-bit integers by radix, in linear time.
    order = np.argsort(
        (width - sizes).astype(np.uint16 if width < 1 << 16 else np.int64), kind="stable"
    )
    counts = np.bincount(sizes, minlength=width + 1)
    bins = np.empty(len(sizes), np.int64)
    room: list[list[np.ndarray]] = [[] for _ in range(width + 1)]  # room left -> bins, in arrays
    open_room = np.zeros(width + 1, np.int64)  # room left -> number of bins
    opened = done = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        items = order[done : done + counts[size]]
        done += len(items)
        for left in [*(np.flatnonzero(open_room[size:]) + size).tolist(), width]:
            if not len(items):
                break
            each = left // size  # once a piece is in, the same bin is the tightest for the next one
            wanted = -(-len(items) // each)
            if open_room[left]:
                have = np.concatenate(room[left])
            else:
                have = np.arange(opened, opened + wanted)
                opened += wanted
            use, keep = have[:wanted], have[wanted:]
            room[left] = [keep] if len(keep) else []
            open_room[left] = len(keep)
            filled = np.repeat(use, each)[: len(items)]
            bins[items[: len(filled)]] = filled
            whole, rest = divmod(len(filled), each)
            for these, taken in ((use[:whole], each), (use[whole:], rest)):
                if len(these):
                    room[left - taken * size].append(these)
                    open_room[left - taken * size] += len(these)
            items = items[len(filled) :]
    return bins


def ranges(numbers: np.ndarray) -> np.ndarray:
    """0 .. n - 1 for each n of `numbers`, concatenated."""
    return np.arange(int(numbers.sum())) - np.repeat(np.cumsum(numbers) - numbers, numbers)
