"""Normalisation over the width, with fp32 statistics whatever the compute type. `D` width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.sharding import param


class RMSNorm(nn.Module):
    """x / RMS(x) * scale: no mean, no bias (Zhang and Sennrich 2019; T5's layer norm).

    Attributes:
      eps: added to the mean square.
    """

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] in x's type. The scale multiplies after the cast, as in T5: bf16 results depend
        on the order.
        """
        scale_D = self.param(
            "scale", param(jax.nn.initializers.ones, "width"), (x.shape[-1],), jnp.float32
        )
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = scale_D.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * inverse).astype(x.dtype) * scale
