"""Products with weight matrices, which are [in, out] in fp32. `I` in, `O` out."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
    kernel: jax.Array,
    *,
    dtype=None,
    inputs: int = 1,
    transposed: bool = False,
    kept: str | None = "matmul",
) -> jax.Array:
    """[..., O]: `x` [..., I] times the kernel, in x's type or in `dtype` (accumulated in it). I may
    be several dims, their number is `inputs`, and O too.

    Args:
      transposed: the kernel is [O, I], as the table of embeddings is, and stays so.
      kept: policies of `nn.compute` that keep this name keep the result; None: the caller names
        what it makes of it.
    """
    sides = _Sides(inputs, transposed)
    product = _product(x, kernel.astype(x.dtype), jnp.dtype(dtype or x.dtype), sides)
    # Rematerialisation does not look into a custom_vjp: a policy knows its result by this name.
    return product if kept is None else checkpoint_name(product, kept)


def gradients(
    x: jax.Array, kernel: jax.Array, d_out: jax.Array, *, dtype=None, transposed: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The cotangents of `x` [..., I] and the kernel when `d_out` [..., O] is that of their product.

    Args:
      dtype: of the kernel's; None: as x.
      transposed: as in `matmul`, of the kernel and of its cotangent.
    """
    x, d_out = _made(x, d_out.astype(x.dtype))
    sides = _Sides((x.ndim + kernel.ndim - d_out.ndim) // 2, transposed)
    rows = range(x.ndim - sides.inputs)
    outs = range(len(rows), d_out.ndim), sides.outs_of(kernel)
    operands = (d_out, x) if transposed else (x, d_out)
    d_kernel = jax.lax.platform_dependent(
        *operands,
        cpu=partial(_kernel_gradient_on_cpu, rows=len(rows), dtype=dtype),
        default=lambda first, second: _contract(first, second, rows, rows, dtype),
    )
    return _contract(d_out, kernel, *outs), d_kernel


class _Sides(NamedTuple):
    """Which dims of a kernel are I and which are O."""

    inputs: int
    transposed: bool

    def ins_of(self, kernel):
        start = kernel.ndim - self.inputs if self.transposed else 0
        return range(start, start + self.inputs)

    def outs_of(self, kernel):
        ins = self.ins_of(kernel)
        return [dim for dim in range(kernel.ndim) if dim not in ins]


def _kernel_gradient_on_cpu(first, second, *, rows, dtype):
    """As on other platforms, with the narrower operand on the left: the product wants that one
    transposed, which XLA's CPU compiler does element by element, fused with what made it.
    """
    # The CPU runtime has no product of bf16 arrays in fp32 whose result is wanted transposed.
    wide = jnp.promote_types(dtype or first.dtype, first.dtype)
    first, second = first.astype(wide), second.astype(wide)
    dims = range(rows)
    if first.size <= second.size:
        return _contract(first, second, dims, dims, dtype)
    # The barrier: else the transpose that follows would turn the operands around again.
    turned = jax.lax.optimization_barrier(_contract(second, first, dims, dims, dtype))
    seconds = second.ndim - rows
    return jnp.transpose(turned, (*range(seconds, turned.ndim), *range(seconds)))


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
def _product(x, kernel, dtype, sides):
    ins = range(x.ndim - sides.inputs, x.ndim), sides.ins_of(kernel)
    return _contract(*_made(x, kernel), *ins, dtype)


def _forward(x, kernel, dtype, sides):
    return _product(x, kernel, dtype, sides), (x, kernel)


def _backward(dtype, sides, saved, d_out):
    return gradients(*saved, d_out, transposed=sides.transposed)


_product.defvjp(_forward, _backward)
