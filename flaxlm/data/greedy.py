"""Rows of whole sentences: where each row begins, by taking sentences for as long as they fit.

All places are tokens of a stream: the documents of a corpus one after another. What a row takes are
units: sentences, and where a sentence is longer than a row, its pieces of the row's width. A row
that begins at one unit ends at the last end of a unit within its width, so the rows follow from
their beginnings, 8 bytes each.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from flaxlm.data.pieces import ranges


def units(sentences: np.ndarray, width: int) -> np.ndarray:
    """[U + 1] where the units of a run of sentences begin, and the end.

    Args:
      sentences: [S + 1] where the sentences begin, strictly ascending, and the end.
      width: of the rows.
    """
    number = -(-np.diff(sentences) // width)
    if number.max(initial=1) == 1:
        return sentences
    cut = np.repeat(sentences[:-1], number) + ranges(number) * width
    return np.append(cut, sentences[-1:])


def rows_within(chunks: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> Iterator:
    """Beginnings of the rows whose sentences are all of one document.

    All documents of a chunk take their first row at once, then their second, and so on.

    Args:
      chunks: (sentences [S + 1], documents [N + 1]) where they begin, with the end; see `units`.
      width: of the rows.
    """
    for sentences, documents in chunks:
        ends = units(sentences, width)
        begin, end = documents[:-1], documents[1:]
        begin, end = begin[begin < end], end[begin < end]
        found = [np.empty(0, np.int64)]
        while len(begin):
            found.append(begin)
            last = np.searchsorted(ends, begin + width, side="right") - 1
            stop = np.minimum(ends[last], end)
            begin, end = stop[stop < end], end[stop < end]
        yield np.sort(np.concatenate(found))


def rows_across(chunks: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> Iterator:
    """Beginnings of the rows whose sentences may be of several documents; as `rows_within`."""
    ends = None
    for sentences, _ in chunks:
        more = units(sentences, width)
        ends = more if ends is None else np.concatenate([ends, more[1:]])
        # A row that reaches the end of what is at hand waits for the next chunk: it may hold more.
        begins, left = _follow(ends, width)
        yield begins
        ends = ends[left:]
    if ends is not None and len(ends) > 1:
        yield ends[:1]


def _follow(ends: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """(beginnings of the rows from ends[0] that end before ends[-1], number of the unit after)."""
    after = (np.searchsorted(ends, ends + width, side="right") - 1).tolist()
    place, last, found = 0, len(ends) - 1, []
    while after[place] < last:
        found.append(place)
        place = after[place]
    return ends[found], place
