"""The rows of permutation language modelling: one text or two, with their special symbols last."""

import numpy as np

from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows


def single_rows(rows: Rows, vocab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, types, lengths) of rows [text SEP CLS]; a row without text stays empty."""
    count, width = rows.tokens.shape
    tokens = np.full((count, width + 2), vocab.pad, np.int32)
    tokens[:, :width] = rows.tokens
    types = np.zeros_like(tokens)
    some = np.flatnonzero(rows.lengths)
    end = np.asarray(rows.lengths)[some]
    tokens[some, end], tokens[some, end + 1] = vocab.sep, vocab.cls
    types[some, end + 1] = 2
    return tokens, types, rows.lengths + 2 * (rows.lengths > 0)


def pair_rows(rows: Rows, reuse: int, rng: RowRandom, vocab):
    """(tokens, types, lengths) of rows [reuse tokens, A SEP B SEP CLS]; a row that is not full (of
    padding alone, in an evaluation) stays empty.
    """
    count, width = rows.tokens.shape
    (partner,) = rows.partners
    room = width - reuse  # of A and B together
    cuts = rows.sentences[:, reuse + 1 :]
    number = np.count_nonzero(cuts, axis=1)
    # Without an end of a sentence to cut at, A ends anywhere and B is from elsewhere.
    anywhere = rng.integers(room - 1, 1)[:, 0]
    size_a = 1 + np.where(number > 0, _nth(cuts, number, rng), anywhere)
    goes_on = (rng.uniform(1)[:, 0] < 0.5) & (number > 0)
    size_b = room - size_a
    begins = partner.sentences & (np.arange(width) <= (width - size_b)[:, None])
    begin = _nth(begins, np.count_nonzero(begins, axis=1), rng)

    column = np.arange(width + 3)
    sep = (reuse + size_a)[:, None]  # the position after A
    # Where each position is read, of the row and its partner side by side; those after B and at
    # SEP are set after.
    later = np.where(goes_on, 0, width + begin - sep[:, 0])[:, None]
    place = column - (column > sep) + np.where(column > sep, later, 0)
    both = np.concatenate([rows.tokens, partner.tokens], axis=1)
    place += np.arange(count)[:, None] * (2 * width)
    tokens = both.ravel().take(place, mode="clip")
    tokens[np.arange(count), sep[:, 0]] = tokens[:, -2] = vocab.sep
    tokens[:, -1] = vocab.cls
    types = (column > sep).astype(np.int32)
    types[:, -1] = 2
    full = np.asarray(rows.lengths) == width
    tokens[~full], types[~full] = vocab.pad, 0
    return tokens, types, full * (width + 3)


def _nth(flags: np.ndarray, number: np.ndarray, rng: RowRandom) -> np.ndarray:
    """[B] a random column of those that are True, `number` of them; 0 where there is none."""
    wanted = rng.integers(np.maximum(number, 1)[:, None], 1)[:, 0]
    columns = np.append(np.flatnonzero(flags) % flags.shape[1], 0)  # of all rows, in turn
    return np.where(number > 0, columns[np.cumsum(number) - number + wanted * (number > 0)], 0)
