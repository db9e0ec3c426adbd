"""The token embedding. `B` batch, `L` length, `D` width, `V` vocabulary (padded)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.named import param
from flaxlm.sharding import constrain

# Table rows are padded up to it: the vocabulary then splits over devices and fills their tiles.
VOCAB_MULTIPLE = 128


def padded(vocab: int) -> int:
    """The number of table rows for `vocab` ids."""
    return -(-vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Embed(nn.Module):
    """A table of token embeddings, also the readout kernel of families that tie the two.

    Attributes:
      vocab: number of ids; the table is padded.
      width: D.
      kernel_init: initializer of the table.
      dtype: type of the embeddings.
    """

    vocab: int
    width: int
    kernel_init: Callable
    dtype: jnp.dtype

    def setup(self):
        shape = (padded(self.vocab), self.width)
        self.table_VD = self.param(
            "table", param(self.kernel_init, "vocab", "embed"), shape, jnp.float32
        )

    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        """[B, L, D] embeddings. Ids are checked on the host; here they are clipped."""
        return look_up(self.table_VD.astype(self.dtype), tokens_BL, "vocab")


def blended(shares_BV: jax.Array):
    """A context in which the token that an `Embed` is asked for is every token by its share of
    `shares`: it returns [B, 1, D] whatever the ids are, and has a derivative.
    """

    def call(next_call, arguments, options, context):
        embed = context.module
        if not isinstance(embed, Embed) or context.method_name != "__call__":
            return next_call(*arguments, **options)
        table_VD = embed.table_VD[: shares_BV.shape[1]]
        return (shares_BV @ table_VD).astype(embed.dtype)[:, None]

    return nn.intercept_methods(call)


def look_up(table_ND: jax.Array, ids_BL: jax.Array, axis: str) -> jax.Array:
    """[B, L, D]: the rows `ids` of a table whose rows have the dim name `axis`, clipped to it."""
    # The width is gathered over the mesh before the lookup, the vocabulary is not: a lookup in a
    # table split along both dims makes XLA replicate the activations ("involuntary full
    # rematerialization").
    table_ND = constrain(table_ND, axis, "width")
    x_BLD = jnp.take(table_ND, ids_BL, axis=0, mode="clip")
    return constrain(x_BLD, "batch", "length", "width")


class Head(nn.Module):
    """The kernel [D, V] of a readout that is not tied to the embedding. Attributes as `Embed`."""

    vocab: int
    width: int
    kernel_init: Callable

    def setup(self):
        shape = (self.width, padded(self.vocab))
        self.kernel_DV = self.param(
            "kernel", param(self.kernel_init, "embed", "vocab"), shape, jnp.float32
        )


class Table(nn.Module):
    """A small table that is whole on every device: positions, token types.

    Attributes:
      rows: entries.
      width: D.
      kernel_init: initializer of the table.
      dtype: type of the results.
      axis: dim name of the rows, "positions" or "types".
    """

    rows: int
    width: int
    kernel_init: Callable
    dtype: jnp.dtype
    axis: str

    def setup(self):
        self.table_ND = self.param(
            "table", param(self.kernel_init, self.axis, "embed"), (self.rows, self.width),
            jnp.float32,
        )  # fmt: skip

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """[B, L, D]: the rows `ids`, clipped to the table (the plan refuses rows too long)."""
        return look_up(self.table_ND.astype(self.dtype), ids_BL, self.axis)
