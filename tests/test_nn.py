"""The parts models are built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named
from flaxlm.errors import ConfigError
from flaxlm.nn import masks
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed, padded
from flaxlm.nn.kernels import attend
from flaxlm.nn.linear import matmul
from flaxlm.nn.norm import RMSNorm
from flaxlm.nn.positions import RelativeBias, buckets

# Distances and buckets on which mesh-tensorflow, T5X and transformers agree.
TWO_SIDED = {16: 10, 32: 12, 64: 14, 91: 15, 127: 15, 300: 15}
ONE_SIDED = {16: 16, 32: 21, 64: 26, 91: 29, 128: 31, 300: 31}


def test_buckets_of_an_encoder():
    def bucket(distance):
        return buckets(np.array(distance), count=32, max_distance=128, two_sided=True)

    for distance, expected in TWO_SIDED.items():
        assert bucket(-distance) == expected, distance
        assert bucket(distance) == expected + 16, distance
    np.testing.assert_array_equal(bucket(np.arange(-8, 8)), [*range(8, -1, -1), *range(17, 24)])


def test_buckets_of_a_decoder():
    def bucket(distance):
        return buckets(np.array(distance), count=32, max_distance=128, two_sided=False)

    for distance, expected in ONE_SIDED.items():
        assert bucket(-distance) == expected, distance
        assert bucket(distance) == 0, (
            distance
        )  # the future is masked; its bucket is that of distance 0
    np.testing.assert_array_equal(bucket(-np.arange(17)), np.arange(17))


def test_relative_bias_depends_on_the_distance_alone():
    module = RelativeBias(count=32, max_distance=128, two_sided=True)
    table = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    bias = module.apply({"params": {"table": table}}, 3, 5, 9, method="bias")
    distance = np.arange(9)[None, :] - np.arange(5)[:, None]
    expected = table[buckets(distance, count=32, max_distance=128, two_sided=True)]
    np.testing.assert_array_equal(bias[0], expected.transpose(2, 0, 1))


def test_masks():
    segments = np.array([[1, 1, 2, 0]])
    mask = masks.same_segment(segments) & masks.causal()
    seen = np.asarray(mask.dense(4, 4))[0, 0].astype(int)
    np.testing.assert_array_equal(seen, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    prefix = np.array([[1, 1, 0]])
    seen = np.asarray(masks.prefix(prefix).dense(3, 3))[0, 0].astype(int)
    np.testing.assert_array_equal(seen, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])


def attention_by_loop(q, k, v, mask, bias):
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        scores = k[b, :, h] @ q[b, i, h] + bias[0, h, i]
        weights = np.exp(scores - scores.max()) * mask[b, 0, i]
        out[b, i, h] = weights @ v[b, :, h] / weights.sum()
    return out


def test_attend_is_attention():
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (5, 6, 6))
    mask = rng.random((2, 1, 5, 6)) < 0.6
    mask[..., 0] = True
    bias = rng.normal(size=(1, 3, 5, 6)).astype(np.float32)
    found = attend(q, k, v, masks.Mask(extra=mask), bias, lambda w: w)
    np.testing.assert_allclose(found, attention_by_loop(q, k, v, mask, bias), atol=1e-5)


def test_attend_without_a_visible_key_is_finite_and_so_is_its_gradient():
    q = k = v = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    mask = jnp.zeros((1, 1, 2, 2), bool)

    def total(q):
        out = attend(q, k, v, masks.Mask(extra=mask))
        assert out.dtype == jnp.bfloat16
        return out.astype(jnp.float32).sum()

    value, gradient = jax.value_and_grad(total)(q)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_rms_norm_multiplies_after_the_cast():
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) * 5
    scale = np.random.default_rng(1).normal(size=64).astype(np.float32)
    norm = RMSNorm(eps=1e-6)
    exact = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    found = norm.apply({"params": {"scale": scale}}, jnp.asarray(x))
    np.testing.assert_allclose(found, exact * scale, rtol=1e-5, atol=1e-6)
    low = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(low, np.float32)
    unscaled = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    expected = jnp.asarray(unscaled, jnp.bfloat16) * jnp.asarray(scale, jnp.bfloat16)[None]
    found = norm.apply({"params": {"scale": scale}}, low)
    assert found.dtype == jnp.bfloat16
    assert (np.asarray(found) == np.asarray(expected)).mean() > 0.99


def test_dropout():
    x = jnp.ones((4, 50, 100))
    drop = Dropout(0.25, shared=(1,))
    key = {"dropout": jax.random.key(0)}
    out = np.asarray(drop.apply({}, x, train=True, rngs=key))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert (out == out[:, :1]).all()
    assert 0.15 < (out == 0).mean() < 0.35
    assert drop.apply({}, x, train=False) is x
    assert Dropout(0.0).apply({}, x, train=True) is x


def test_matmul_and_its_gradient_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    np.testing.assert_allclose(matmul(x, kernel), np.asarray(x) @ np.asarray(kernel), atol=1e-5)
    found = jax.jit(jax.grad(lambda *xs: (matmul(*xs) * weights).sum(), argnums=(0, 1)))(x, kernel)
    np.testing.assert_allclose(found[0], np.asarray(weights) @ np.asarray(kernel).T, atol=1e-5)
    expected = np.einsum("bli,blo->io", np.asarray(x), np.asarray(weights))
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


def test_matmul_computes_in_the_type_of_x():
    x, kernel = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.float32)
    total = lambda kernel: matmul(x, kernel).astype(jnp.float32).sum()
    assert matmul(x, kernel).dtype == jnp.bfloat16
    assert jax.grad(total)(kernel).dtype == jnp.float32


def test_embedding_tables_are_padded():
    assert [padded(n) for n in (1, 128, 129, 32128)] == [128, 128, 256, 32128]
    module = Embed(130, 8, nn.initializers.normal(1.0), jnp.float32)
    boxed = module.init(jax.random.key(0), np.zeros((1, 2), np.int32))
    assert named.axes_of(boxed) == {"params/table": ("vocab", "embed")}
    params = named.unbox(boxed)
    table = params["params"]["table"]
    assert table.shape == (256, 8)
    tokens = np.array([[5, 129], [0, 7]], np.int32)
    np.testing.assert_array_equal(module.apply(params, tokens), np.asarray(table)[tokens])


@pytest.mark.parametrize("field, value", [("dtype", "bfloat"), ("remat", "ful")])
def test_compute_refuses_unknown_names(field, value):
    with pytest.raises(ConfigError, match=f"compute.{field}='{value}': did you mean {value[:3]}"):
        Compute(**{field: value})


def test_a_product_over_two_dims_is_the_product_over_their_join():
    from flaxlm.nn.linear import matmul

    x, d_out = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)), jnp.ones((2, 3, 6, 7))
    kernel = jax.random.normal(jax.random.key(1), (4, 5, 6, 7))
    y, pull = jax.vjp(lambda x, kernel: matmul(x, kernel, inputs=2), x, kernel)
    joined, pull_joined = jax.vjp(matmul, x.reshape(2, 3, 20), kernel.reshape(20, 42))
    pairs = [(y, joined), *zip(pull(d_out), pull_joined(d_out.reshape(2, 3, 42)), strict=True)]
    for apart, together in pairs:
        np.testing.assert_allclose(apart, together.reshape(apart.shape), rtol=1e-5, atol=1e-5)
