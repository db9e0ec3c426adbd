"""Feed-forward layers, plain and gated. `B` batch, `L` length, `D` width, `F` inner width."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import project
from flaxlm.sharding import constrain


class MLP(nn.Module):
    """activation(x W_in) W_out.

    Attributes:
      inner: F.
      activation: elementwise function.
      kernel_init: initializer of the kernel in.
      out_init: initializer of the kernel out; None: as `kernel_init`.
      bias_init: initializer of the biases; None: there are none.
      dropout: makes the dropout of the inner activations.
      out_dropout: makes the dropout of the result.
    """

    inner: int
    activation: Callable[[jax.Array], jax.Array]
    kernel_init: Callable
    out_init: Callable | None = None
    bias_init: Callable | None = None
    dropout: Callable[..., nn.Module] = partial(Dropout, 0.0)
    out_dropout: Callable[..., nn.Module] = partial(Dropout, 0.0)

    @nn.compact
    def __call__(self, x_BLD: jax.Array, *, train: bool) -> jax.Array:
        """[B, L, D], from and to."""
        return self.narrowed(self.activation(self.widened("in", x_BLD)), x_BLD.shape[-1], train)

    def widened(self, name: str, x_BLD: jax.Array) -> jax.Array:
        return project(
            self, name, x_BLD, self.inner, ("embed", "mlp"), self.kernel_init, self.bias_init
        )

    def narrowed(self, h_BLF: jax.Array, width: int, train: bool) -> jax.Array:
        h_BLF = constrain(h_BLF, "batch", "length", "mlp")
        h_BLF = self.dropout(name="dropout")(h_BLF, train=train)
        init = self.out_init or self.kernel_init
        y_BLD = project(self, "out", h_BLF, width, ("mlp", "embed"), init, self.bias_init)
        return self.out_dropout(name="out_dropout")(y_BLD, train=train)


class GatedMLP(MLP):
    """(activation(x W_gate) * x W_in) W_out (Shazeer 2020). Attributes as `MLP`."""

    @nn.compact
    def __call__(self, x_BLD: jax.Array, *, train: bool) -> jax.Array:
        """[B, L, D], from and to."""
        gate_BLF = self.activation(self.widened("gate", x_BLD))
        return self.narrowed(gate_BLF * self.widened("in", x_BLD), x_BLD.shape[-1], train)
