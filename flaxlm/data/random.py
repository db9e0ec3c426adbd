"""Random numbers addressed by global row number.

What is masked in row 12,345 of a run may depend on the run's seed and on 12,345, and on nothing
else: not on the host that makes the row, not on the rows beside it. A counter-based generator
(Philox, Salmon et al. 2011) gives that: each row owns a stretch of the counter, and a whole batch
of consecutive rows is one vectorised draw.
"""

import numpy as np


class RowRandom:
    """Independent random streams for the rows of a batch.

    >>> a = RowRandom(0, np.arange(4, 8)).uniform(3)
    >>> b = RowRandom(0, np.array([6])).uniform(3)
    >>> bool((a[2] == b[0]).all())
    True

    Each call is a new draw: two calls never share numbers, and the n-th call of one row is the same
    whatever the batch.
    """

    def __init__(self, seed: int, rows: np.ndarray):
        self.seed = int(seed)
        self.rows = np.asarray(rows, np.int64)
        self._draws = 0

    def _raw(self, n: int) -> np.ndarray:
        """[B, n] uint64, the next draw. Rows are cut into runs of consecutive numbers, one
        generator call each.
        """
        key = np.array([self.seed, self._draws], np.uint64)
        self._draws += 1
        blocks = -(-n // 4)  # Philox makes four 64-bit words per counter step
        out = np.empty((len(self.rows), blocks * 4), np.uint64)
        # Short rows pack densely: the counter of row r starts at r * blocks. The draw number keys
        # the stream, so draws of different width cannot overlap.
        starts = np.flatnonzero(np.diff(self.rows, prepend=self.rows[:1] - 2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            bits = np.random.Philox(key=key, counter=0)
            bits.advance(int(self.rows[start]) * blocks)
            out[start:stop] = bits.random_raw((stop - start) * blocks * 4).reshape(stop - start, -1)
        return out[:, :n]

    def uniform(self, n: int) -> np.ndarray:
        """[B, n] float64 in [0, 1)."""
        return (self._raw(n) >> np.uint64(11)) * 2.0**-53

    def bits(self, n: int) -> np.ndarray:
        """[B, n] uint32, for when 32 random bits are enough (two words per 64-bit draw)."""
        return np.ascontiguousarray(self._raw(-(-n // 2))).view(np.uint32)[:, :n]

    def integers(self, high: np.ndarray | int, n: int) -> np.ndarray:
        """[B, n] int64 in [0, high); `high` an int or anything that broadcasts to [B, n], at most
        2**31.

        Multiply-shift on 32 random bits: the bias of a value is below high / 2**32.
        """
        return (
            self.bits(n).astype(np.uint64) * np.asarray(high, np.uint64) >> np.uint64(32)
        ).astype(np.int64)
