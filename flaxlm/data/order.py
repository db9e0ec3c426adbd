"""In which order samples are read: permutations, epochs and mixtures without state.

Everything here maps a sample number to a place in the data by arithmetic alone. There is nothing to
save, nothing to skip through on resume, and any number of hosts can ask for any sample.
"""

from collections.abc import Sequence

import numpy as np

from flaxlm.errors import ConfigError

# Samples over which the share of each component is exact: four decimals of a weight are kept.
BLOCK = 10_000

_ROUNDS = 10
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(*numbers) -> np.ndarray:
    """A 64-bit hash of integers (or of arrays that broadcast), at least [1] uint64."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = _finish((state ^ np.asarray(number).astype(np.uint64)) + _GOLDEN)
    return state


def _finish(state: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _scramble(key: np.ndarray, half: np.ndarray) -> np.ndarray:
    """31 bits of each half under its key; the rounds of the network do the rest of the mixing."""
    state = (key + half) * np.uint64(0xBF58476D1CE4E5B9)
    return ((state ^ (state >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)) >> np.uint64(33)


def permute(index: np.ndarray, n: int, key: np.ndarray | int) -> np.ndarray:
    """[B] int64: the places in [0, n) to which the permutations `key` of [0, n) send `index`.

    A Feistel network over a rectangle just larger than n, walked until the value falls inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): a bijection for each key,
    with no memory.

    Args:
      index: [B] integers in [0, n).
      n: size of the domain, at least 1.
      key: which permutation: one for all, or one per element [B].
    """
    assert n > 0 and (len(index) == 0 or (np.min(index) >= 0 and np.max(index) < n))
    key = np.broadcast_to(np.asarray(key).astype(np.uint64), np.shape(index))
    side = max(1, int(np.ceil(np.sqrt(n))))
    rows, columns = np.uint64(side), np.uint64(-(-n // side))
    turns = mixed(np.arange(_ROUNDS))  # a key of its own for every round
    out = np.asarray(index).astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        left, right = np.divmod(out[outside], columns)
        for turn in range(0, _ROUNDS, 2):
            left = (left + _scramble(key ^ turns[turn], right)) % rows
            right = (right + _scramble(key ^ turns[turn + 1], left)) % columns
        value = left * columns + right
        out[outside] = value
        walk_on = value >= n
        outside, key = outside[walk_on], key[walk_on]
    return out.astype(np.int64)


class Permutation:
    """A bijection of [0, n) drawn by `seed`.

    >>> sorted(Permutation(5, seed=3)(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int):
        self.n = n
        self._key = mixed(seed)

    def __call__(self, index: np.ndarray) -> np.ndarray:
        return permute(np.asarray(index), self.n, self._key)


class Epochs:
    """Endless passes over `rows` rows, each in an order of its own."""

    def __init__(self, rows: int, seed: int):
        assert rows > 0
        self.rows = rows
        self.seed = seed

    def __call__(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B] sample numbers -> ([B] epoch, [B] row)."""
        epoch, place = np.divmod(np.asarray(sample, np.int64), self.rows)
        return epoch, permute(place, self.rows, self._key(1, epoch))

    def shift(self, epoch: np.ndarray, width: int) -> np.ndarray:
        """[B] in [0, width): by how many tokens the windows of an epoch are moved."""
        return (self._key(2, epoch) % np.uint64(width)).astype(np.int64)

    def _key(self, use: int, epoch: np.ndarray) -> np.ndarray:
        """[B] a hash of each epoch; a batch has one or two of them, so each is made once."""
        first, last = int(epoch.min()), int(epoch.max())
        return mixed(self.seed, use, np.arange(first, last + 1))[epoch - first]


def apportion(
    weights: Sequence[float], total: int, *, names: Sequence[str] | None = None
) -> np.ndarray:
    """[C] whole shares of `total`, in proportion to `weights`, each at least 1.

    Args:
      weights: relative to one another and above 0.
      total: sum of the shares, at least as many as there are weights.
      names: of what the weights belong to, for the error.

    Raises:
      ConfigError: a weight is not above 0 and finite.
    """
    names = names or [f"component {i}" for i in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < np.inf:
            raise ConfigError(
                f"weight {weight} of {name} must be above 0 and finite; "
                "leave a source out to skip it"
            )
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    quota = np.maximum(np.floor(exact).astype(np.int64), 1)
    # Largest remainder: hand out what rounding down left, or take back what the ones cost.
    while (missing := int(total - quota.sum())) > 0:
        quota[np.argmax(exact - quota)] += 1
    for _ in range(-missing):
        quota[np.argmax(np.where(quota > 1, quota - exact, -np.inf))] -= 1
    return quota


class Mixture:
    """Sample number -> (component, number within the component), with exact shares.

    Every BLOCK samples hold each component exactly `quota` times, in a permuted order. Neither the
    shares nor the order depend on how many rows a component has.

    >>> mixture = Mixture([3.0, 1.0], seed=0)
    >>> [round(share, 4) for share in mixture.fractions]
    [0.75, 0.25]
    """

    def __init__(self, weights: Sequence[float], seed: int, *, names: Sequence[str] | None = None):
        """`weights` are relative to one another and above 0; `names` are for the error."""
        if not 0 < len(weights) <= BLOCK:
            raise ConfigError(f"a mixture needs between 1 and {BLOCK} sources, not {len(weights)}")
        self.quota = apportion(weights, BLOCK, names=names)
        self.seed = seed
        self._ends = np.cumsum(self.quota)

    @property
    def fractions(self) -> list[float]:
        """Share of each component as used, exact over every BLOCK samples."""
        return [float(share) for share in self.quota / BLOCK]

    def used(self, samples: int) -> np.ndarray:
        """[C] how many of the first `samples` samples are of each component."""
        blocks, rest = divmod(samples, BLOCK)
        component, _ = self(np.arange(samples - rest, samples))
        return blocks * self.quota + np.bincount(component, minlength=len(self.quota))

    def __call__(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B] sample numbers -> ([B] component, [B] number within it, each number exactly once)."""
        sample = np.asarray(sample, np.int64)
        if len(self.quota) == 1:
            return np.zeros_like(sample), sample
        block, place = np.divmod(sample, BLOCK)
        place = permute(place, BLOCK, mixed(self.seed, 3, block))
        component = np.searchsorted(self._ends, place, side="right")
        before = self._ends[component] - self.quota[component]
        return component, block * self.quota[component] + place - before


class Streams:
    """Row of the batch -> (component, token): rows that go on from step to step without end.

    A row of the batch belongs to one component for the whole run. The rows of a component begin at
    equal distances on the ring of its tokens and move on together. A row that comes to where the
    next one began reads on there, so nothing is ever torn but the end of the ring; when the rows
    have covered the distances between them, every token was read once.

    >>> streams = Streams([30, 100], [1, 2], seed=0)
    >>> component, token = streams(np.arange(3), passed=0)
    >>> component.tolist(), int(token[2] - token[1]) % 100
    ([0, 1, 1], 50)
    """

    def __init__(self, tokens: Sequence[int], quota: Sequence[int], *, seed: int):
        """`tokens` on each component's ring, and how many rows of the batch belong to it."""
        self._tokens = np.asarray(tokens, np.int64)
        self._quota = np.asarray(quota, np.int64)
        self._ends = np.cumsum(self._quota)
        first = mixed(seed, 6, np.arange(len(self._tokens))) % self._tokens.astype(np.uint64)
        self._first = first.astype(np.int64)  # where on the ring a run begins is its seed's choice

    def __call__(self, place: np.ndarray, *, passed: int) -> tuple[np.ndarray, np.ndarray]:
        """[B] places in the batch -> ([B] component, [B] first token) after `passed` tokens."""
        component = np.searchsorted(self._ends, place, side="right")
        number = place - (self._ends - self._quota)[component]
        tokens = self._tokens[component]
        begin = number * tokens // self._quota[component]
        return component, (self._first[component] + begin + passed) % tokens
