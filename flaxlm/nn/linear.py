"""Products with weight matrices, which are [in, out] in fp32. `I` in, `O` out."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def matmul(x: jax.Array, kernel_IO: jax.Array, *, dtype=None) -> jax.Array:
    """[..., O]: `x` [..., I] times the kernel, in x's type or in `dtype` (accumulated in it)."""
    product = _product(x, kernel_IO.astype(x.dtype), jnp.dtype(dtype or x.dtype))
    # Rematerialisation does not look into a custom_vjp: a policy knows its result by this name.
    return checkpoint_name(product, "matmul")


def _contract(x, y, x_dims, y_dims, dtype=None):
    dims = ((tuple(x_dims), tuple(y_dims)), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=dtype)


def _made(*operands):
    """The operands as arrays of their own. XLA's CPU compiler fuses the elementwise work that makes
    an operand with the transpose that its product wants; a training step ran 1.5 times slower.
    """
    return jax.lax.platform_dependent(
        *operands, cpu=lambda *xs: jax.lax.optimization_barrier(xs), default=lambda *xs: xs
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel_IO, dtype):
    return _contract(*_made(x, kernel_IO), [x.ndim - 1], [0], dtype)


def _forward(x, kernel_IO, dtype):
    return _product(x, kernel_IO, dtype), (x, kernel_IO)


def _backward(dtype, saved, d_out):
    x, kernel_IO = saved
    x, d_out = _made(x, d_out.astype(x.dtype))
    rows = range(x.ndim - 1)
    return _contract(d_out, kernel_IO, [x.ndim - 1], [1]), _contract(x, d_out, rows, rows)


_product.defvjp(_forward, _backward)
