"""`Compute`: how a model is computed, never what. It moves results by no more than rounding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError, nearest
from flaxlm.sharding import current

_TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Names of what a layer computes (jax.ad_checkpoint.checkpoint_name), and which of them each policy
# keeps from the forward pass for the backward pass; from the least memory up.
#   matmul         every other product with a weight matrix, before its bias (nn/linear.py)
#   qkv            queries, keys and values, after bias and rotation (nn/attention.py)
#   attention      what attention returns, and what its kernel keeps for itself (nn/kernels.py)
#   attention_out  the projection of that back to the width (nn/attention.py)
_KEPT = {
    "full": (),
    "qkv": ("qkv",),
    "attention": ("qkv", "attention", "attention_out"),
    "dots": ("matmul", "qkv"),
    "minimal": ("matmul", "qkv", "attention"),
}
_OFFLOADED = _KEPT["attention"]
POLICIES = ("full", "offload", *[name for name in _KEPT if name != "full"], "none")


@dataclass(frozen=True)
class Compute:
    """Compute type, loop over the layers, rematerialisation.

    Attributes:
      dtype: "float32" or "bfloat16", of activations and matrix products. Parameters, norm
        statistics, softmax and loss are float32 always.
      scan: one compiled loop over the layers (compiles fast, right on accelerators) instead of a
        copy of the program per layer (faster on CPUs).
      remat: what a layer keeps for its backward pass, which computes the rest again; every policy
        keeps the layer's input. From the least memory and the most recomputation up:
        "full": nothing more; a whole forward pass is computed again.
        "offload": as "attention", but in the memory of the host (TPU, GPU; refused on a CPU, whose
        memory that is). It costs two transfers a layer, which wide layers hide.
        "qkv": queries, keys and values.
        "attention": these, what attention returns and its projection; attention does not run again,
        in the backward pass only the feed-forward layer does.
        "dots": every product with a weight matrix; attention runs again.
        "minimal": these and what attention returns; only elementwise work runs again.
        "none": everything, attention weights included where no kernel avoids them.
        Numbers are in docs/memory.md.
    """

    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self):
        if self.dtype not in _TYPES:
            raise ConfigError(f"compute.dtype={self.dtype!r}: {nearest(self.dtype, _TYPES)}")
        if self.remat not in POLICIES:
            raise ConfigError(f"compute.remat={self.remat!r}: {nearest(self.remat, POLICIES)}")

    @property
    def type(self):
        """The jax type of `dtype`."""
        return _TYPES[self.dtype]

    @property
    def policy(self):
        """The jax.checkpoint policy of `remat` under the current layout, or None for "none".

        Raises:
          ConfigError: "offload" on devices whose memory is the host's.
        """
        if self.remat == "none":
            return None
        if self.remat != "offload":
            return jax.checkpoint_policies.save_only_these_names(*_KEPT[self.remat])
        mesh = current().mesh
        if mesh is not None and mesh.devices.flat[0].platform == "cpu":
            raise ConfigError(
                "compute.remat='offload': a CPU's memory is the host's, so this would save "
                "nothing; take 'attention', which keeps the same, or 'full'"
            )
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(_OFFLOADED),
            offload_src="device",
            offload_dst="pinned_host",
        )
