"""Products with weight matrices, which are [in, out] in fp32. `I` in, `O` out."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.sharding import param


def project(
    module: nn.Module,
    name: str,
    x: jax.Array,
    features: int,
    axes: tuple[str, str],
    kernel_init: Callable,
    bias_init: Callable | None,
) -> jax.Array:
    """[..., features]: `x` [..., I] through the kernel `name` and the bias `<name>_bias` of
    `module`.

    Args:
      axes: dim names of the kernel; a bias that comes back to the "embed" dim has "width" there.
      bias_init: None leaves the bias out.
    """
    shape = (x.shape[-1], features)
    kernel_IO = module.param(name, param(kernel_init, *axes), shape, jnp.float32)
    y = matmul(x, kernel_IO)
    if bias_init is None:
        return y
    axis = "width" if axes[1] == "embed" else axes[1]
    bias_O = module.param(f"{name}_bias", param(bias_init, axis), (features,), jnp.float32)
    return y + bias_O.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Linear(nn.Module):
    """One product and a bias: poolers, heads, changes of width. Parameters kernel, kernel_bias.

    Attributes:
      features: O.
      kernel_init: initializer of the kernel [I, O].
      bias_init: initializer of the bias [O]; None leaves it out.
      axes: dim names of the kernel.
    """

    features: int
    kernel_init: Callable
    bias_init: Callable | None = jax.nn.initializers.zeros
    axes: tuple[str, str] = ("embed", "width")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., O] in x's type."""
        return project(
            self, "kernel", x, self.features, self.axes, self.kernel_init, self.bias_init
        )


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
