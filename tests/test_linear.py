"""The derivative of a product with a weight matrix, which CPUs compute their own way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.nn.linear import gradients, matmul


def _arrays(inputs, outputs):
    shapes = (5, 6, *inputs), (*inputs, *outputs), (5, 6, *outputs)
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((8,), (3,)), ((3,), (8,)), ((4, 2), (3,)), ((3,), (4, 2))]
)
def test_gradients_are_those_of_the_product(inputs, outputs):
    """Wide and narrow sides, one dim or several."""
    x, kernel, d_out = _arrays(inputs, outputs)
    d_x, d_kernel = jax.jit(gradients)(x, kernel, d_out)
    x_RI, d_RO = x.reshape(30, -1), d_out.reshape(30, -1)
    kernel_IO = kernel.reshape(math.prod(inputs), -1)
    np.testing.assert_allclose(d_kernel, (x_RI.T @ d_RO).reshape(kernel.shape), atol=1e-5)
    np.testing.assert_allclose(d_x, (d_RO @ kernel_IO.T).reshape(x.shape), atol=1e-5)


def test_a_transposed_kernel_in_bfloat16_with_fp32_logits():
    """A readout tied to the embedding table: XLA's CPU runtime refused its gradient once."""
    x, table_VD, targets = _arrays((8,), (16,))[0], jnp.ones((16, 8), jnp.float32), jnp.ones(())

    @jax.jit
    def gradient(x, table_VD):
        def loss(table_VD):
            logits = matmul(x, table_VD.T, dtype=jnp.float32)
            return (jax.nn.logsumexp(logits, axis=-1) * targets).sum()

        d_kernel = gradients(x, table_VD.T, jnp.ones((5, 6, 16)), dtype=jnp.float32)[1]
        return jax.grad(loss)(table_VD), d_kernel.T + 1

    found, transposed = gradient(x.astype(jnp.bfloat16), table_VD)
    assert found.shape == transposed.shape == (16, 8)
    assert transposed.dtype == jnp.float32
    expected = x.astype(jnp.bfloat16).astype(jnp.float32).sum((0, 1)) + 1
    np.testing.assert_allclose(transposed, np.broadcast_to(expected, (16, 8)), atol=0.05)
