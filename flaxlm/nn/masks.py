"""Who may attend to whom: boolean masks [B, 1, Q, S], True where query position Q sees key position
S.
"""

import jax
import jax.numpy as jnp


def same_segment(queries_BQ: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """[B, 1, Q, S]: equal segment ids. Padding (0) sees padding, so no row of a softmax is empty
    where both have it.
    """
    return (queries_BQ[:, :, None] == keys_BS[:, None, :])[:, None]


def causal(length: int) -> jax.Array:
    """[1, 1, L, L]: keys up to the query itself."""
    position = jnp.arange(length)
    return (position[:, None] >= position[None, :])[None, None]


def near(length: int, band: int) -> jax.Array:
    """[1, 1, L, L]: keys fewer than `band` positions before the query, and all after it; to be
    joined to a causal mask (a banded layer: the last `band` positions, the query's included).
    """
    position = jnp.arange(length)
    return (position[:, None] - position[None, :] < band)[None, None]


def seen_by_all(prefix_BS: jax.Array) -> jax.Array:
    """[B, 1, 1, S]: keys marked 1, to be joined to a causal mask (a prefix LM)."""
    return (prefix_BS == 1)[:, None, None, :]


def below(order_BS: jax.Array, reach_BQ: jax.Array) -> jax.Array:
    """[B, 1, Q, S]: keys whose place in an order is below the query's reach (permutations)."""
    return (order_BS[:, None, :] < reach_BQ[:, :, None])[:, None]
