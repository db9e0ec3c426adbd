"""Relative positions of Transformer-XL (Dai et al. 2019, section 3.3): scores that know how far the
key is from the query, and nothing else about where the two are.

The score of a query q and a key k at distance d, before scaling, has four terms:

    q k  +  q W r(d)  +  u k  +  v W r(d)

with sinusoids r(d), a matrix W and vectors u and v per layer (the paper may tie u and v over the
layers; here every layer has its own). `TransformerXL` brings them to any family that takes a
`nn.positions.Position`; `RelativeScores` is the module for a family with attention of its own.

`B` batch, `Q` queries, `S` keys, `L` positions of the text, `N` distances, `D` width, `H` heads,
`K` head dim.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from flaxlm.named import param
from flaxlm.nn.linear import project
from flaxlm.nn.masks import Mask
from flaxlm.nn.positions import Position
from flaxlm.sharding import constrain


class Relative(struct.PyTreeNode):
    """What `nn.attention.Attention` gets as its bias to compute the three further terms itself.

    Attributes:
      encoding: [N, D], see `encoding`.
      places: [1, Q] which positions the queries are; None: the last of the keys, in order.
    """

    encoding: jax.Array
    places: jax.Array | None = None


class TransformerXL(Position):
    """Transformer-XL's positions as an exchangeable part.

    Attributes:
      width: D of the sinusoids, the model's width in the paper; even.
    """

    width: int

    def bias(self, heads, queries, keys, first=None):
        if first is None:
            return Relative(encoding(queries, keys, self.width))
        places_1Q = Mask(first=first).places(queries)[None]
        return Relative(encoding(keys, keys, self.width), places_1Q)


def encoding(queries: int, keys: int, width: int) -> jax.Array:
    """[N, D] fp32 sinusoids, all sines then all cosines, of the distances (query minus key) of
    `queries` positions that are the last of `keys`: keys - 1 down to 1 - queries, N = keys +
    queries - 1.
    """
    assert width % 2 == 0, f"sinusoids of odd width {width}"
    frequency = 10_000.0 ** -(np.arange(0, width, 2) / width)
    distance_N = jnp.arange(keys - 1, -queries, -1).astype(jnp.float32)
    angle_NF = distance_N[:, None] * jnp.asarray(frequency, jnp.float32)[None]
    return jnp.concatenate([jnp.sin(angle_NF), jnp.cos(angle_NF)], axis=-1)


def shift(x_BHQN: jax.Array, keys: int) -> jax.Array:
    """[B, H, Q, S]: of the scores by distance those of each query with each key; query i is key
    S - Q + i. Distances are in the order of `encoding`.
    """
    *batch, queries, distances = x_BHQN.shape
    if queries == 1:
        return x_BHQN
    # Query i wants the `keys` entries from Q - 1 - i on. In rows that are one entry shorter they
    # all begin at one column.
    flat = x_BHQN.reshape(*batch, queries * distances)
    flat = jax.lax.slice_in_dim(
        flat, queries - 1, queries - 1 + queries * (distances - 1), axis=len(batch)
    )
    return flat.reshape(*batch, queries, distances - 1)[..., :keys]


def shift_at(x_BHQN: jax.Array, places_BQ: jax.Array, keys: int) -> jax.Array:
    """[B, H, Q, S]: as `shift`, for queries that are some of the L positions: query i is the
    places[b, i]-th, L = N - S + 1.
    """
    start_BQ = x_BHQN.shape[-1] - keys - places_BQ

    def cut(x_HN, start):
        return jax.lax.dynamic_slice_in_dim(x_HN, start, keys, axis=1)

    return jax.vmap(jax.vmap(cut, in_axes=(1, 0), out_axes=1))(x_BHQN, start_BQ)


class RelativeScores(nn.Module):
    """The three terms that Transformer-XL adds to q k. Parameters kernel [D, H*K], content_bias (u)
    and position_bias (v) [H, K].

    Attributes:
      heads: H.
      head_dim: K.
      kernel_init: initializer of all three.
    """

    heads: int
    head_dim: int
    kernel_init: Callable

    @nn.compact
    def __call__(
        self,
        q_BQHK: jax.Array,
        k_BSHK: jax.Array,
        encoding_ND: jax.Array,
        places_BQ: jax.Array | None = None,
    ) -> jax.Array:
        """[B, H, Q, S] fp32, not scaled.

        Args:
          q_BQHK, k_BSHK: queries and keys, not scaled.
          encoding_ND: of the distances, see `encoding`.
          places_BQ: which positions the queries are; None: the last Q of the keys, in order.
        """
        inner = self.heads * self.head_dim

        def vector(name):
            made = param(self.kernel_init, "heads", "head_dim")
            value = self.param(name, made, (self.heads, self.head_dim), jnp.float32)
            return value.astype(q_BQHK.dtype)

        r_NI = project(
            self, "kernel", encoding_ND.astype(q_BQHK.dtype), inner, ("embed", "heads"),
            self.kernel_init, None,
        )  # fmt: skip
        r_NHK = r_NI.reshape(-1, self.heads, self.head_dim)
        content_BHS = jnp.einsum(
            "HK,BSHK->BHS", vector("content_bias"), k_BSHK, preferred_element_type=jnp.float32
        )
        x_BHQN = jnp.einsum(
            "BQHK,NHK->BHQN",
            q_BQHK + vector("position_bias")[None, None],
            r_NHK,
            preferred_element_type=jnp.float32,
        )
        keys = k_BSHK.shape[1]
        if places_BQ is None:
            s_BHQS, length = shift(x_BHQN, keys), "length"
        else:
            s_BHQS, length = shift_at(x_BHQN, places_BQ, keys), "slots"
        return constrain(s_BHQS + content_BHS[:, :, None], "batch", "heads", length, "keys")
