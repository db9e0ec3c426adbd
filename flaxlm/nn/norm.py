"""Normalisation over the width, with fp32 statistics whatever the compute type. `D` width."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.named import param


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
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = _vector(self, "scale", jax.nn.initializers.ones, x).astype(x.dtype)
        return (wide * inverse).astype(x.dtype) * scale


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation * scale + bias (Ba et al. 2016), the variance biased.

    Attributes:
      eps: added to the variance.
    """

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] in x's type; everything up to the cast of the result is fp32."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        scale = _vector(self, "scale", jax.nn.initializers.ones, x)
        bias = _vector(self, "bias", jax.nn.initializers.zeros, x)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


def _vector(module: nn.Module, name: str, init, x: jax.Array) -> jax.Array:
    """A parameter [D], shaped to go with `x`."""
    vector_D = module.param(name, param(init, "width"), (x.shape[-1],), jnp.float32)
    return vector_D.reshape((1,) * (x.ndim - 1) + (-1,))
