"""Products with weight matrices, which are [in, out] in fp32. `I` in, `O` out."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.named import param


def project(
    module: nn.Module,
    name: str,
    x: jax.Array,
    features: int | tuple[int, ...],
    axes: tuple[str, str],
    kernel_init: Callable,
    bias_init: Callable | None,
    *,
    inputs: int = 1,
    kept: str | None = "matmul",
) -> jax.Array:
    """[..., *features]: `x` [..., I] through the kernel `name` [I, O] and the bias `<name>_bias` of
    `module`.

    Args:
      features: O, or the dims that it is split into.
      inputs: how many dims of x make up I, the last ones.
      axes: dim names of the kernel; a bias that comes back to the "embed" dim has "width" there.
      bias_init: None leaves the bias out.
      kept: see `matmul`.
    """
    ins = x.shape[x.ndim - inputs :]
    outs = features if isinstance(features, tuple) else (features,)
    shape = (math.prod(ins), math.prod(outs))
    kernel_IO = module.param(name, param(kernel_init, *axes), shape, jnp.float32)
    y = matmul(x, kernel_IO.reshape(*ins, *outs), inputs=inputs, kept=kept)
    if bias_init is None:
        return y
    axis = "width" if axes[1] == "embed" else axes[1]
    bias_O = module.param(f"{name}_bias", param(bias_init, axis), shape[1:], jnp.float32)
    return y + bias_O.astype(y.dtype).reshape((1,) * (y.ndim - len(outs)) + outs)


class Linear(nn.Module):
    """One product and a bias: poolers, heads, changes of width. Parameters kernel, kernel_bias.

    Attributes:
      features: O.
      kernel_init: initializer of the kernel [I, O].
      bias_init: initializer of the bias [O]; None leaves it out.
      axes: dim names of the kernel.
      kept: see `matmul`.
    """

    features: int
    kernel_init: Callable
    bias_init: Callable | None = jax.nn.initializers.zeros
    axes: tuple[str, str] = ("embed", "width")
    kept: str | None = "matmul"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., O] in x's type."""
        return project(
            self,
            "kernel",
            x,
            self.features,
            self.axes,
            self.kernel_init,
            self.bias_init,
            kept=self.kept,
        )


def matmul(
    x: jax.Array,
    kernel_IO: jax.Array,
    *,
    dtype=None,
    inputs: int = 1,
    kept: str | None = "matmul",
) -> jax.Array:
    """[..., O]: `x` [..., I] times the kernel, in x's type or in `dtype` (accumulated in it). I may
    be several dims, their number is `inputs`, and O too. Policies of `nn.compute` that keep `kept`
    keep the result; None: the caller names what it makes of it.
    """
    product = _product(x, kernel_IO.astype(x.dtype), jnp.dtype(dtype or x.dtype), inputs)
    # Rematerialisation does not look into a custom_vjp: a policy knows its result by this name.
    return product if kept is None else checkpoint_name(product, kept)


def gradients(
    x: jax.Array, kernel_IO: jax.Array, d_out: jax.Array, *, dtype=None
) -> tuple[jax.Array, jax.Array]:
    """The cotangents of `x` [..., I] and the kernel when `d_out` [..., O] is that of their product.

    Args:
      dtype: of the kernel's; None: as x.
    """
    x, d_out = _made(x, d_out.astype(x.dtype))
    inputs = (x.ndim + kernel_IO.ndim - d_out.ndim) // 2
    rows = range(x.ndim - inputs)
    outs = range(len(rows), d_out.ndim), range(inputs, kernel_IO.ndim)
    d_kernel = jax.lax.platform_dependent(
        x,
        d_out,
        cpu=partial(_kernel_gradient_on_cpu, inputs=inputs, dtype=dtype),
        default=lambda x, d_out: _contract(x, d_out, rows, rows, dtype),
    )
    return _contract(d_out, kernel_IO, *outs), d_kernel


def _kernel_gradient_on_cpu(x, d_out, *, inputs, dtype):
    """As on other platforms, with the narrower operand on the left: the product wants that one
    transposed, which XLA's CPU compiler does element by element, fused with what made it.
    """
    # The CPU runtime has no product of bf16 arrays in fp32 whose result is wanted transposed.
    wide = jnp.promote_types(dtype or x.dtype, x.dtype)
    x, d_out = x.astype(wide), d_out.astype(wide)
    rows = range(x.ndim - inputs)
    if x.size <= d_out.size:
        return _contract(x, d_out, rows, rows, dtype)
    # The barrier: else the transpose that follows would turn the operands around again.
    d_OI = jax.lax.optimization_barrier(_contract(d_out, x, rows, rows, dtype))
    outputs = d_out.ndim - len(rows)
    return jnp.transpose(d_OI, (*range(outputs, d_OI.ndim), *range(outputs)))


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel_IO, dtype, inputs):
    ins = range(x.ndim - inputs, x.ndim), range(inputs)
    return _contract(*_made(x, kernel_IO), *ins, dtype)


def _forward(x, kernel_IO, dtype, inputs):
    return _product(x, kernel_IO, dtype, inputs), (x, kernel_IO)


def _backward(dtype, inputs, saved, d_out):
    return gradients(*saved, d_out)


_product.defvjp(_forward, _backward)
