"""`Compute`: how a model is computed, never what. It moves results by no more than rounding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError, nearest

_TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# What the forward pass of a layer keeps for its backward pass, from the least memory up.
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "qkv": jax.checkpoint_policies.save_only_these_names("qkv"),
    "dots": jax.checkpoint_policies.save_only_these_names("matmul"),
}


@dataclass(frozen=True)
class Compute:
    """Compute type, loop over the layers, rematerialisation.

    Attributes:
      dtype: "float32" or "bfloat16", of activations and matrix products. Parameters, norm
        statistics, softmax and loss are float32 always.
      scan: one compiled loop over the layers (compiles fast, right on accelerators) instead of a
        copy of the program per layer (faster on CPUs).
      remat: "none" keeps every activation; "full" keeps only the input of each layer; "qkv" keeps
        the query, key and value projections too; "dots" keeps every product with a weight matrix.
    """

    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self):
        if self.dtype not in _TYPES:
            raise ConfigError(f"compute.dtype={self.dtype!r}: {nearest(self.dtype, _TYPES)}")
        if self.remat != "none" and self.remat not in _POLICIES:
            raise ConfigError(
                f"compute.remat={self.remat!r}: {nearest(self.remat, ['none', *_POLICIES])}"
            )

    @property
    def type(self):
        """The jax type of `dtype`."""
        return _TYPES[self.dtype]

    @property
    def policy(self):
        """The jax.checkpoint policy of `remat`, or None for "none"."""
        return None if self.remat == "none" else _POLICIES[self.remat]
