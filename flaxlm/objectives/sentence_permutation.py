"""The sentences of a row, and the row with its sentences in another order."""

import numpy as np

from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows


def sentence_table(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Where the sentences of rows begin.

    A row's first token begins one, also where a document was cut inside a sentence.

    Returns:
      (begins [B, S + 1] int64: of sentence s, and the row's length from its last sentence on;
      sentences [B] int64).
    """
    lengths = np.asarray(rows.lengths)
    starts = rows.sentences & (rows.segments > 0)
    starts[:, 0] = lengths > 0
    count = np.count_nonzero(starts, axis=1)
    columns = np.arange(int(count.max(initial=0)) + 1)
    begins = np.repeat(lengths[:, None], len(columns), axis=1)
    begins[columns < count[:, None]] = np.nonzero(starts)[1]
    return begins, count


def permuted_sentences(rows: Rows, rng: RowRandom, *, share: float = 1.0) -> np.ndarray:
    """[B, W] int64: which token of its row to read at each place, so that sentences change places.

    `np.take_along_axis(rows.tokens, permuted_sentences(rows, rng), axis=1)` is the permuted text;
    padding stays where it is. Every order is equally likely (BART, Lewis et al. 2020, section 2.2).

    Args:
      share: of a row's sentences that are permuted among themselves, rounded up; which ones is
        random (fairseq's `permute_sentence_ratio`).
    """
    width = rows.tokens.shape[1]
    begins, count = sentence_table(rows)
    most = begins.shape[1] - 1
    columns = np.arange(most)
    real = columns < count[:, None]
    # As many keys as a row can have sentences: a row's draw knows nothing of the rows beside it.
    keys = np.where(real, rng.bits(width)[:, :most], np.uint64(1) << np.uint64(32))
    drawn = np.argsort(keys, axis=1, kind="stable")
    moved = columns < np.ceil(count * share)[:, None]
    places = np.sort(np.where(moved, drawn, most), axis=1)
    order = np.broadcast_to(columns, drawn.shape).copy()
    row = np.broadcast_to(np.arange(len(count))[:, None], drawn.shape)
    order[row[moved], places[moved]] = drawn[moved]

    source = np.take_along_axis(begins[:, :-1], order, axis=1)
    sizes = np.take_along_axis(np.diff(begins, axis=1), order, axis=1)
    # Padding is one more piece, at its own place.
    rest = width - begins[:, -1:]
    distance = np.concatenate([source - (np.cumsum(sizes, axis=1) - sizes), 0 * rest], axis=1)
    sizes = np.concatenate([sizes, rest], axis=1)
    index = np.repeat(distance.ravel(), sizes.ravel()).reshape(len(count), width)
    return index + np.arange(width)
