"""Dropout whose noise can be shared along dims."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Zero a share `rate` of the elements and scale up the rest; one draw for all elements along
    `shared` dims.

    Attributes:
      rate: in [0, 1).
      shared: dims along which the noise is the same, counted from the end if negative. T5 shares it
        along the length, (-2,) (mesh-tensorflow's noise shape).
    """

    rate: float
    shared: tuple[int, ...] = ()

    def acting(self, train: bool) -> Callable[[jax.Array], jax.Array] | None:
        """What this does in training or not, or None where that is nothing."""
        return partial(self, train=True) if train and self.rate else None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """As `x`; `x` itself unless `train`. Draws from the "dropout" stream."""
        if not train or self.rate == 0.0:
            return x
        shape = list(x.shape)
        for dim in self.shared:
            shape[dim] = 1
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return x * jnp.where(kept, 1.0 / keep, 0.0).astype(x.dtype)
