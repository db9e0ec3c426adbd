"""Feed-forward layers, plain and gated. `B` batch, `L` length, `D` width, `F` inner width."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import matmul
from flaxlm.sharding import constrain, param


class MLP(nn.Module):
    """activation(x W_in) W_out, without biases.

    Attributes:
      inner: F.
      activation: elementwise function.
      kernel_init: initializer of the kernels.
      dropout: rate on the inner activations, noise shared along the length.
    """

    inner: int
    activation: Callable[[jax.Array], jax.Array]
    kernel_init: Callable
    dropout: float

    @nn.compact
    def __call__(self, x_BLD: jax.Array, *, train: bool) -> jax.Array:
        """[B, L, D], from and to."""
        in_DF = _kernel(self, "in", "embed", "mlp", (x_BLD.shape[-1], self.inner))
        return _out(self, self.activation(matmul(x_BLD, in_DF)), x_BLD.shape[-1], train)


class GatedMLP(nn.Module):
    """(activation(x W_gate) * x W_in) W_out, without biases (Shazeer 2020). Attributes as `MLP`."""

    inner: int
    activation: Callable[[jax.Array], jax.Array]
    kernel_init: Callable
    dropout: float

    @nn.compact
    def __call__(self, x_BLD: jax.Array, *, train: bool) -> jax.Array:
        """[B, L, D], from and to."""
        shape = (x_BLD.shape[-1], self.inner)
        gate_BLF = matmul(x_BLD, _kernel(self, "gate", "embed", "mlp", shape))
        h_BLF = matmul(x_BLD, _kernel(self, "in", "embed", "mlp", shape))
        return _out(self, self.activation(gate_BLF) * h_BLF, x_BLD.shape[-1], train)


def _kernel(module, name, rows, columns, shape):
    return module.param(name, param(module.kernel_init, rows, columns), shape, jnp.float32)


def _out(module, h_BLF, width, train):
    h_BLF = constrain(h_BLF, "batch", "length", "mlp")
    h_BLF = Dropout(module.dropout, shared=(1,), name="dropout")(h_BLF, train=train)
    return matmul(h_BLF, _kernel(module, "out", "mlp", "embed", (module.inner, width)))
