"""From documents to windows of a fixed width: which pieces of which documents make a row.

The packings (`flaxlm.data.spec.Data.packing`):

  stream          documents one after another, cut every `width` tokens; every row is full
  split           each document cut every `width` tokens, one piece a row, the last one padded
  pack            the pieces of "split" put together, best fit first: nearly full, short texts whole
  sentences       whole sentences of one document, as many as fit one after another; padded
  full_sentences  the same across documents
  continue        "stream"; the order of the rows is another (`flaxlm.data.order.Streams`)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flaxlm.data.greedy import rows_across, rows_within
from flaxlm.data.order import mixed
from flaxlm.data.pieces import Documents, PieceRows, Pieces, best_fit, ranges
from flaxlm.errors import ConfigError, DataError, nearest

# Documents or pieces looked at together: bounds the temporary memory and the reach of the packer.
CHUNK = 1 << 20
# Documents whose sentences are looked at together.
_SENTENCES_OF = 1 << 16
# How often another partner is drawn for a row whose partner is of its own document.
_REDRAWS = 10


@dataclass(frozen=True)
class Counts:
    """What became of the documents, per epoch. Tokens include the separators put after documents.

    Attributes:
      documents: of the corpus, empty ones included.
      empty: documents without a token; they make no row.
      split: documents longer than a window: their pieces are in several rows.
      tokens: to be placed.
      dropped: tokens left over: in a stream, those after the last whole window; elsewhere none.
      pieces: of documents ("stream", "sentences" and those like them: windows).
      rows: windows of an epoch.
      full: share of the rows' positions that hold a token.
    """

    documents: int
    empty: int
    split: int
    tokens: int
    dropped: int
    pieces: int
    rows: int
    full: float


class Windows:
    """Random access to the rows of a corpus under one packing."""

    def __init__(
        self,
        corpus: Documents,
        *,
        width: int,
        packing: str,
        separator: int | None = None,
        name: str = "corpus",
    ):
        """
        Args:
          corpus: see `Documents`.
          width: tokens of a row (`objective.window(length)`).
          packing: one of the above.
          separator: id put after every document that is not empty, or None.
          name: of the corpus, for errors.

        Raises:
          DataError: if there is not one row.
          ConfigError: for an unknown packing.
        """
        layouts: dict[str, tuple[Callable[[], tuple[int, int]], Callable[..., Pieces]]] = {
            "stream": (self._lay_stream, self._pieces_of_stream),
            "split": (self._lay_split, self._pieces_of_split),
            "pack": (self._lay_pack, self._pieces_of_pack),
            "sentences": (lambda: self._lay_greedy(rows_within), self._pieces_of_greedy),
            "full_sentences": (lambda: self._lay_greedy(rows_across), self._pieces_of_greedy),
            "continue": (self._lay_stream, self._pieces_of_stream),
        }
        if packing not in layouts:
            raise ConfigError(
                f"data.packing={packing!r} does not exist; {nearest(packing, layouts)}"
            )
        self.corpus, self.width, self.separator = corpus, width, separator
        self._name = name
        self._offsets = corpus.offsets
        self._extra = int(separator is not None)
        self._empty, split = self._scan()
        filled = corpus.documents - len(self._empty)
        self._tokens = int(self._offsets[-1]) + self._extra * filled
        self._of_one_document = packing in ("split", "sentences")
        lay_out, self._pieces_of = layouts[packing]
        pieces, self._rows = lay_out()
        if self._rows == 0:
            raise DataError(
                f"{name}: {self._tokens} tokens in {corpus.documents} documents "
                f"({len(self._empty)} empty) do not make one row of {width} tokens; "
                "add text, or lower data.length"
            )
        used = self._rows * width if packing in ("stream", "continue") else self._tokens
        self.counts = Counts(
            documents=corpus.documents,
            empty=len(self._empty),
            split=split,
            tokens=self._tokens,
            dropped=self._tokens - used,
            pieces=pieces,
            rows=self._rows,
            full=used / (self._rows * width),
        )

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._rows

    def rows(
        self, place: np.ndarray, shift: np.ndarray, *, index: np.ndarray, pad: int
    ) -> PieceRows:
        """Rows by their place in the epoch.

        Args:
          place: [B] in [0, len(self)); -1 makes a row of padding alone.
          shift: [B] tokens by which a stream's windows are moved, so that epochs cut at other
            places; the stream is a ring, so a row may join the last document and the first. Other
            packings ignore it.
          index: [B] what the rows are to be called.
          pad: id of padding.
        """
        pieces = self._pieces_of(np.asarray(place, np.int64), np.asarray(shift, np.int64))
        return PieceRows(
            self.corpus,
            pieces,
            index=index,
            width=self.width,
            pad=pad,
            separator=self.separator,
            name=self._name,
        )

    def others(self, place: np.ndarray, *key: int | np.ndarray) -> np.ndarray:
        """[B] for each row another one, all others equally likely; -1 for a row of padding.

        Where a row is of one document ("sentences", "split") the other is of another document; only
        if ten draws find none it is of the same, as it is in a corpus of one document.

        Args:
          place: [B] as for `rows`.
          key: numbers, or arrays [B], that the draw depends on, and on nothing else.
        """
        place = np.asarray(place, np.int64)
        key = [np.broadcast_to(part, place.shape) for part in key]
        found, left = np.full_like(place, -1), np.flatnonzero(place >= 0)
        for turn in range(_REDRAWS):
            own = place[left]
            distance = mixed(turn, *(part[left] for part in key)) % np.uint64(self._rows - 1)
            found[left] = (own + 1 + distance.astype(np.int64)) % self._rows
            if not self._of_one_document:
                break
            same = self._document_of(own) == self._document_of(found[left])
            left = left[same]
            if not len(left):
                break
        return found

    def _document_of(self, place: np.ndarray) -> np.ndarray:
        """[B] the document of each row, where rows are of one."""
        return self._pieces_of(place, np.zeros_like(place)).document

    def _scan(self) -> tuple[np.ndarray, int]:
        """(ids of empty documents, number of documents longer than a window)."""
        empty, split = [np.empty(0, np.int64)], 0
        for start in range(0, self.corpus.documents, CHUNK):
            sizes = np.diff(self._offsets[start : start + CHUNK + 1])
            empty.append(np.flatnonzero(sizes == 0) + start)
            split += int(np.count_nonzero(sizes + self._extra > self.width))
        return np.concatenate(empty), split

    def _begin(self, document: np.ndarray) -> np.ndarray:
        """[P] tokens, separators included, before each document (or before N: all of them)."""
        begin = self._offsets[document]
        if self._extra:
            begin = begin + document - np.searchsorted(self._empty, document)
        return np.asarray(begin)

    def _document_at(self, token: np.ndarray) -> np.ndarray:
        """[P] the document of each token of the stream. `_begin` is bisected, never stored."""
        if not self._extra:
            return np.searchsorted(self._offsets, token, side="right") - 1
        low = np.zeros(len(token), np.int64)
        high = np.full(len(token), self.corpus.documents)
        for _ in range(int(self.corpus.documents).bit_length()):
            middle = (low + high) // 2
            before = self._begin(middle) <= token
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        return low

    def _lay_stream(self) -> tuple[int, int]:
        rows = self._tokens // self.width
        return rows, rows

    def _pieces_of_stream(self, place: np.ndarray, shift: np.ndarray) -> Pieces:
        row = np.flatnonzero(place >= 0)
        first = (np.broadcast_to(shift, place.shape)[row] + place[row] * self.width) % self._tokens
        # A window that runs past the end goes on at the beginning: two spans of the ring, else one
        # and nothing.
        spans = np.minimum(self.width, self._tokens - first)
        first = np.stack([first, np.zeros_like(first)], axis=1).ravel()
        length = np.stack([spans, self.width - spans], axis=1).ravel()
        row, first, length = (np.repeat(row, 2)[length > 0], first[length > 0], length[length > 0])
        return self._cut(row, first, length)

    def _cut(self, row: np.ndarray, first: np.ndarray, length: np.ndarray) -> Pieces:
        """The pieces of documents in spans of the stream: `length` tokens from `first` on."""
        lowest = self._document_at(first)
        number = self._document_at(first + length - 1) - lowest + 1
        span = np.repeat(np.arange(len(first)), number)
        document = lowest[span] + ranges(number)
        begin, end = self._begin(document), self._begin(document + 1)
        start = np.maximum(first[span], begin)
        stop = np.minimum((first + length)[span], end)
        some = stop > start  # empty documents on the way
        return Pieces(row[span][some], document[some], (start - begin)[some], (stop - start)[some])

    def _lay_split(self) -> tuple[int, int]:
        # 8 bytes a document: the number of pieces before it.
        self._first_piece = np.zeros(self.corpus.documents + 1, np.int64)
        for start in range(0, self.corpus.documents, CHUNK):
            stop = min(start + CHUNK, self.corpus.documents)
            sizes = np.diff(self._begin(np.arange(start, stop + 1)))
            self._first_piece[start + 1 : stop + 1] = -(-sizes // self.width)
        np.cumsum(self._first_piece, out=self._first_piece)
        pieces = int(self._first_piece[-1])
        return pieces, pieces

    def _pieces_of_split(self, place: np.ndarray, shift: np.ndarray) -> Pieces:
        row = np.flatnonzero(place >= 0)
        return self._pieces(row, place[row])

    def _pieces(self, row: np.ndarray, piece: np.ndarray) -> Pieces:
        document = np.searchsorted(self._first_piece, piece, side="right") - 1
        start = (piece - self._first_piece[document]) * self.width
        size = self._begin(document + 1) - self._begin(document)
        return Pieces(row, document, start, np.minimum(size - start, self.width))

    def _lay_greedy(self, begins: Callable) -> tuple[int, int]:
        found = [*begins(self._sentences(), self.width), np.array([self._tokens])]
        self._begins = np.concatenate(found)
        rows = len(self._begins) - 1
        return rows, rows

    def _sentences(self):
        """Where sentences and documents begin in the stream, for a run of documents at a time; a
        separator belongs to the last sentence of its document.
        """
        offsets = self.corpus.sentence_offsets
        for start in range(0, self.corpus.documents, _SENTENCES_OF):
            stop = min(start + _SENTENCES_OF, self.corpus.documents)
            raw = np.asarray(self._offsets[start : stop + 1])
            first, last = np.searchsorted(offsets, raw[[0, -1]])
            sentences = np.array(offsets[first : last + 1])
            documents = self._begin(np.arange(start, stop + 1))
            if self._extra:
                number = np.diff(np.searchsorted(sentences, raw))
                sentences[:-1] += np.repeat((documents - raw)[:-1], number)
                sentences[-1] = documents[-1]
            yield sentences, documents

    def _pieces_of_greedy(self, place: np.ndarray, shift: np.ndarray) -> Pieces:
        row = np.flatnonzero(place >= 0)
        first = self._begins[place[row]]
        return self._cut(row, first, self._begins[place[row] + 1] - first)

    def _lay_pack(self) -> tuple[int, int]:
        pieces, _ = self._lay_split()
        # 4 bytes a piece and 8 a row: the pieces in the order of the rows, and where each row
        # begins among them.
        self._order = np.empty(pieces, np.int32 if pieces < 2**31 else np.int64)
        starts = [np.zeros(1, np.int64)]
        for begin in range(0, pieces, CHUNK):
            chunk = np.arange(begin, min(begin + CHUNK, pieces))
            bins = best_fit(self._pieces(chunk, chunk).length, self.width)
            self._order[chunk] = chunk[np.argsort(bins, kind="stable")]
            starts.append(np.cumsum(np.bincount(bins)) + begin)
        self._row_starts = np.concatenate(starts)
        return pieces, len(self._row_starts) - 1

    def _pieces_of_pack(self, place: np.ndarray, shift: np.ndarray) -> Pieces:
        row = np.flatnonzero(place >= 0)
        first = self._row_starts[place[row]]
        number = self._row_starts[place[row] + 1] - first
        piece = self._order[np.repeat(first, number) + ranges(number)].astype(np.int64)
        return self._pieces(np.repeat(row, number), piece)
