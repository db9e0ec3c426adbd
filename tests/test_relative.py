"""Transformer-XL's relative positions: against the formula written out, and inside a family that
knows nothing of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named
from flaxlm.models import bert, gpt2
from flaxlm.nn import relative
from flaxlm.nn.attention import Attention
from flaxlm.nn.compute import Compute
from flaxlm.nn.masks import Mask

RANDOM = np.random.default_rng(0)


def sinusoid(distance, width):
    """r(d) of the paper, one number after the other."""
    half = width // 2
    angles = [distance / 10_000 ** (2 * i / width) for i in range(half)]
    return np.array([np.sin(a) for a in angles] + [np.cos(a) for a in angles])


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (3, 8), (1, 5)])
def test_shift_finds_the_score_of_each_distance(queries, keys):
    x = RANDOM.standard_normal((2, 3, queries, keys + queries - 1)).astype(np.float32)
    expected = np.empty((2, 3, queries, keys), np.float32)
    for i in range(queries):
        for j in range(keys):
            distance = (keys - queries + i) - j
            expected[:, :, i, j] = x[:, :, i, (keys - 1) - distance]
    np.testing.assert_array_equal(relative.shift(jnp.asarray(x), keys), expected)
    # Queries by their places: some of them, in any order, more than once.
    places = RANDOM.integers(0, queries, (2, 4)).astype(np.int32)
    chosen = np.take_along_axis(x, places[:, None, :, None], axis=2)
    found = relative.shift_at(jnp.asarray(chosen), jnp.asarray(places), keys)
    wanted = np.take_along_axis(expected, places[:, None, :, None], axis=2)
    np.testing.assert_array_equal(found, wanted)


def test_encoding():
    found = relative.encoding(3, 5, 6)
    expected = [sinusoid(distance, 6) for distance in (4, 3, 2, 1, 0, -1, -2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_are_the_four_terms():
    """Attention with a relative bias, term by term, for every pair of positions."""
    heads, head_dim, width, length = 2, 3, 6, 5
    x = RANDOM.standard_normal((2, length, width)).astype(np.float32)
    module = Attention(heads, head_dim, kernel_init=jax.nn.initializers.normal(0.7), scale=0.6)
    bias = relative.TransformerXL(width).bias(heads, length, length)
    call = dict(mask=Mask(), bias=bias, train=False)
    params = named.unbox(module.init(jax.random.key(0), x, x, **call)["params"])
    _, sown = module.apply({"params": params}, x, x, **call, mutable=["layers"])
    found = sown["layers"]["scores"]

    def split(name):
        return (x @ params[name]).reshape(2, length, heads, head_dim)

    q, k, own = split("query"), split("key"), params["relative"]
    assert {name: value.shape for name, value in own.items()} == {
        "kernel": (6, 6), "content_bias": (2, 3), "position_bias": (2, 3)
    }  # fmt: skip
    u, v = own["content_bias"], own["position_bias"]
    for b, h, i, j in np.ndindex(found.shape):
        r = (sinusoid(i - j, width) @ own["kernel"]).reshape(heads, head_dim)[h]
        terms = q[b, i, h] @ k[b, j, h], q[b, i, h] @ r, u[h] @ k[b, j, h], v[h] @ r
        np.testing.assert_allclose(found[b, h, i, j], 0.6 * sum(terms), atol=2e-5)


def gpt(length):
    size = gpt2.Size(2, 32, 48, 4, head_dim=8, vocab=128, positions=64, dropout=0.0)
    model = gpt2.Model(size, Compute(scan=False), positions=relative.TransformerXL(32))
    return model, batch_of(length)


def batch_of(length):
    ids = np.arange(2 * length).reshape(2, length) * 7 % 128
    return {
        "tokens": ids.astype(np.int32),
        "segments": np.ones((2, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (2, 1)),
        "types": np.zeros((2, length), np.int32),
    }


def init(model, batch):
    params = model.init(jax.random.key(0), batch, train=False)["params"]
    # Vectors that begin near zero would hide what they do.
    return jax.tree.map(lambda x: 4 * x, named.unbox(params))


def hidden(model, params, batch):
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch, train=False))
    return np.asarray(apply(params, batch)["hidden"])


def test_a_causal_stack_with_it_is_causal_and_knows_distances_alone():
    model, batch = gpt(10)
    params = init(model, batch)
    assert "positions" not in params
    assert params["layers"]["attention"]["relative"]["kernel"].shape == (2, 32, 32)
    before = hidden(model, params, batch)

    future = batch | {"tokens": batch["tokens"].copy()}
    future["tokens"][:, 6] += 1
    after = hidden(model, params, future)
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert np.abs(after[:, 6:] - before[:, 6:]).max(axis=-1).min() > 1e-3

    # Moved by four positions behind another text, the text gives the same.
    later = {k: np.pad(v, ((0, 0), (4, 0)), constant_values=2) for k, v in batch.items()}
    np.testing.assert_allclose(hidden(model, params, later)[:, 4:], before, atol=5e-5)

    # And it does know the order: swapping two tokens of the past moves the last.
    swapped = batch | {"tokens": batch["tokens"].copy()}
    swapped["tokens"][:, [1, 2]] = swapped["tokens"][:, [2, 1]]
    assert np.abs(hidden(model, params, swapped)[:, -1] - before[:, -1]).max() > 1e-3


def test_a_two_sided_stack_with_it_knows_before_from_behind():
    size = bert.Size(2, 32, 48, 4, vocab=128, length=64, dropout=0.0, attention_dropout=0.0)
    model = bert.MaskedLanguageModel(
        size, Compute(scan=False), positions=relative.TransformerXL(32)
    )
    batch = batch_of(10)
    params = init(model, batch)
    before = hidden(model, params, batch)
    mirrored = batch | {"tokens": np.ascontiguousarray(batch["tokens"][:, ::-1])}
    assert np.abs(hidden(model, params, mirrored)[:, ::-1] - before).max() > 1e-3
