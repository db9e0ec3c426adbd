"""One transformer layer, before or after the norms; what differs between families is passed in.

`B` batch, `L` length, `S` length of the memory, `D` width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from flaxlm.nn.masks import Mask
from flaxlm.sharding import constrain

Sublayer = Callable[[jax.Array], jax.Array]


def pre_norm(x: jax.Array, sublayer: Sublayer, norm: Sublayer) -> jax.Array:
    """x + sublayer(norm(x)): GPT-2, T5. The stack needs a norm of its own at the end."""
    return x + sublayer(norm(x))


def post_norm(x: jax.Array, sublayer: Sublayer, norm: Sublayer) -> jax.Array:
    """norm(x + sublayer(x)): the original transformer, BERT, GPT-1, BART."""
    return norm(x + sublayer(x))


class Block(nn.Module):
    """Self-attention, attention to `memory` if there is one, feed-forward.

    Parameters: attention, attention_norm, (cross_attention, cross_norm,) mlp, mlp_norm.

    Attributes:
      attention: makes an `nn.attention.Attention`, dropout of its result included.
      mlp: makes an `nn.mlp.MLP`, dropout of its result included.
      norm: makes a norm.
      residual: `pre_norm` or `post_norm`.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    residual: Callable[[jax.Array, Sublayer, Sublayer], jax.Array]

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        bias: jax.Array | None = None,
        rotation: Callable | None = None,
        memory_BSD: jax.Array | None = None,
        memory_mask: Mask | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """[B, L, D], from and to.

        Args:
          mask, bias, rotation: of the self-attention, see `nn.attention.Attention`.
          memory_BSD: what the cross-attention reads; None: there is no cross-attention.
          memory_mask: which of it.
        """
        # Said here as well, else what a layer keeps for its backward pass is laid out anew (TPU).
        x_BLD = constrain(x_BLD, "batch", "length", "width")

        def attend(y_BLD):
            return self.attention(name="attention")(
                y_BLD, y_BLD, mask=mask, bias=bias, rotation=rotation, train=train
            )

        def attend_memory(y_BLD):
            return self.attention(name="cross_attention")(
                y_BLD, memory_BSD, mask=memory_mask, train=train
            )

        x_BLD = self.residual(x_BLD, attend, self.norm(name="attention_norm"))
        if memory_BSD is not None:
            x_BLD = self.residual(x_BLD, attend_memory, self.norm(name="cross_norm"))
        mlp = self.mlp(name="mlp")
        x_BLD = self.residual(x_BLD, lambda y: mlp(y, train=train), self.norm(name="mlp_norm"))
        if self.is_mutable_collection("layers"):  # someone asked for them: see step.Applied
            self.sow("layers", "hidden", x_BLD, reduce_fn=lambda old, new: new)
        return constrain(x_BLD, "batch", "length", "width")
