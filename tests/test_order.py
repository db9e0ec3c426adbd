"""Orders without state: bijections, uniform, and mixtures with exact shares."""

import itertools
import math

import numpy as np
import pytest

from flaxlm.data.order import BLOCK, Epochs, Mixture, Permutation, mixed, permute
from flaxlm.errors import ConfigError


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 30_011])
def test_permutation_is_a_bijection(n):
    for seed in (0, 1, 2**63 + 5):
        places = Permutation(n, seed)(np.arange(n))
        assert np.array_equal(np.sort(places), np.arange(n))


def test_permutation_of_a_huge_domain_needs_no_memory():
    n = 10**12
    index = np.random.default_rng(0).integers(0, n, 1000)
    places = Permutation(n, 3)(index)
    assert places.min() >= 0 and places.max() < n
    assert len(np.unique(places)) == len(np.unique(index))
    # Uniform over ten bins: chi-square with 9 degrees of freedom stays under its 99.99 % quantile.
    hits = np.bincount(places * 10 // n, minlength=10)
    assert ((hits - 100) ** 2 / 100).sum() < 33.7


def test_every_order_of_four_is_equally_likely():
    draws = 24_000
    keys = mixed(np.arange(draws), 7)
    orders = np.stack([permute(np.full(draws, i), 4, keys) for i in range(4)], axis=1)
    code = orders @ np.array([64, 16, 4, 1])
    known = [np.dot(order, [64, 16, 4, 1]) for order in itertools.permutations(range(4))]
    hits = np.array([(code == c).sum() for c in known])
    expected = draws / math.factorial(4)
    assert ((hits - expected) ** 2 / expected).sum() < 56  # 23 degrees of freedom, 99.99 %


def test_pairs_of_places_are_uniform():
    draws, n = 100_000, 30
    keys = mixed(np.arange(draws), 11)
    first, second = (permute(np.full(draws, i), n, keys) for i in (3, 4))
    hits = np.bincount(first * n + second, minlength=n * n)[~np.eye(n, dtype=bool).ravel()]
    expected = draws / (n * (n - 1))
    degrees = n * (n - 1) - 1
    statistic = ((hits - expected) ** 2 / expected).sum()
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)


def test_epochs_go_through_all_rows_in_new_orders():
    epochs = Epochs(97, seed=5)
    epoch, row = epochs(np.arange(3 * 97))
    assert np.array_equal(epoch, np.repeat([0, 1, 2], 97))
    passes = row.reshape(3, 97)
    assert all(np.array_equal(np.sort(p), np.arange(97)) for p in passes)
    assert (passes[0] == passes[1]).sum() < 10  # about one agrees by chance
    shift = epochs.shift(np.arange(1000), 50)
    assert shift.min() == 0 and shift.max() == 49


def test_any_sample_can_be_asked_for_alone():
    epochs = Epochs(10, seed=1)
    together = epochs(np.arange(35))
    alone = [epochs(np.array([i])) for i in range(35)]
    assert np.array_equal(together[0], np.concatenate([e for e, _ in alone]))
    assert np.array_equal(together[1], np.concatenate([r for _, r in alone]))


def test_mixture_shares_are_exact_in_every_block():
    mixture = Mixture([0.6, 0.3, 0.1], seed=2)
    component, number = mixture(np.arange(3 * BLOCK))
    for block in component.reshape(3, BLOCK):
        assert np.bincount(block).tolist() == [6000, 3000, 1000]
    for c in range(3):
        assert np.array_equal(np.sort(number[component == c]), np.arange((component == c).sum()))
    assert mixture.fractions == [0.6, 0.3, 0.1]
    # Mixed well within a block too: 1000 samples hold 600 of the first, +- 5 standard deviations.
    assert abs((component[:1000] == 0).sum() - 600) < 5 * math.sqrt(1000 * 0.6 * 0.4)


def test_tiny_weights_still_appear():
    assert Mixture([1, 1e-9, 1e-9, 5], seed=0).quota.tolist() == [1666, 1, 1, 8332]
    assert Mixture([1, 1, 1], seed=0).quota.sum() == BLOCK


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_mixture_refuses_a_weight(weight):
    with pytest.raises(ConfigError, match="of b must be above 0"):
        Mixture([1.0, weight], seed=0, names=["a", "b"])
