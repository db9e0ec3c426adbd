"""Pieces of documents: how they are put together in bins, and how they are read into rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flaxlm.errors import DataError


class Documents(Protocol):
    """What a window needs of a corpus.

    Attributes:
      offsets: [N + 1] int64, tokens before each document; the last entry is the number of tokens.
      documents: N.
      tokens: tokens of all documents.
      fingerprint: changes when any token does.
    """

    offsets: np.ndarray
    documents: int
    tokens: int
    fingerprint: str

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


def read_rows(
    corpus: Documents,
    pieces: Pieces,
    *,
    count: int,
    width: int,
    pad: int,
    separator: int | None,
    name: str,
):
    """Rows from pieces: (tokens, segments, positions, sentences) as in `flaxlm.data.rows.Rows`.

    Args:
      corpus: to read the documents from, each once.
      pieces: in the order of the rows.
      count, width: of the rows; what no piece fills is padding.
      pad: its id.
      separator: the last token of every document, beyond what the corpus holds, or None.
      name: of the corpus, for errors.

    Raises:
      DataError: a document is not as long as the corpus's index says.
    """
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
    stop = pieces.start + pieces.length
    closed = stop > sizes[place]  # the piece ends in its document's separator
    stop = stop - closed

    where = np.cumsum(pieces.length) - pieces.length  # of each piece among all tokens of the batch
    total = int(pieces.length.sum())
    text = [
        documents[d][0][a:b]
        for d, a, b in zip(place.tolist(), pieces.start.tolist(), stop.tolist(), strict=True)
    ]
    tokens = np.concatenate([np.empty(0, np.int32), *text])
    if separator is not None:
        ends = (where + pieces.length - 1)[closed]
        tokens = np.insert(tokens, ends - np.arange(len(ends)), separator)
    order = np.arange(len(pieces.row)) - np.searchsorted(pieces.row, pieces.row)
    segments = np.repeat((order + 1).astype(np.int32), pieces.length)
    positions = np.arange(total, dtype=np.int32) - np.repeat(where.astype(np.int32), pieces.length)

    starts = [documents[d][1] for d in place.tolist()]
    numbers = np.fromiter(map(len, starts), np.int64, len(starts))
    at = np.concatenate([np.empty(0, np.int64), *starts])
    inside = (at >= np.repeat(pieces.start, numbers)) & (at < np.repeat(stop, numbers))
    sentences = np.zeros(total, bool)
    sentences[(at + np.repeat(where - pieces.start, numbers))[inside]] = True

    if total == count * width:
        return tuple(x.reshape(count, width) for x in (tokens, segments, positions, sentences))
    used = np.bincount(pieces.row, weights=pieces.length, minlength=count)
    real = np.arange(width) < used[:, None]
    out = (
        np.full(real.shape, pad, np.int32),
        np.zeros(real.shape, np.int32),
        np.zeros(real.shape, np.int32),
        np.zeros(real.shape, bool),
    )
    for padded, values in zip(out, (tokens, segments, positions, sentences), strict=True):
        padded[real] = values
    return out


def best_fit(sizes: np.ndarray, width: int) -> np.ndarray:
    """[P] the bin of each piece, under best-fit decreasing: largest piece first, into the bin it
    fills best.

    Bins with equal room are interchangeable, so all pieces of one size go at once: the work in
      Python depends on the
    width, not on the number of pieces. Bins are numbered from 0 in the order of opening.

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
