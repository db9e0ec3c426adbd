"""Who may attend to whom, said in a form that kernels understand: segments, causal order, a band;
and as an array of booleans what none of them says.

`B` batch, `Q` queries, `S` keys, `L` length where both are the same. Positions of both sides start
at 0, but for the queries of a step of generation (`Mask.first`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct


class Mask(struct.PyTreeNode):
    """The pairs that pass every part of it; `a & b` joins two.

    Attributes:
      query_segments: [B, Q] ids; a query sees keys of its own segment. Padding (0) sees padding, so
        no row of a softmax is empty where both have it. None: segments play no part.
      key_segments: [B, S]; None: the keys are the queries, each of which then sees itself.
      banded: a boolean (traced): whether `band` counts, for layers that differ in it; None: it
        does.
      extra: [B or 1, 1, Q or 1, S] booleans: permutations, prefixes, memory.
      first: position of the first query among the keys (traced), in a step of generation; None: 0.
      causal: a query sees the keys up to its own position.
      band: a query sees the last `band` keys, its own position included, and all after it (so it is
        joined to `causal`); None: no band.
    """

    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    banded: jax.Array | None = None
    extra: jax.Array | None = None
    first: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)
    band: int | None = struct.field(pytree_node=False, default=None)

    def __and__(self, other: "Mask") -> "Mask":
        """Both. Segments, and bands, can be in one of them alone."""
        assert self.query_segments is None or other.query_segments is None, "two sets of segments"
        assert self.band is None or other.band is None, "two bands"
        segmented = other if self.query_segments is None else self
        banded = other if self.band is None else self
        extras = [mask.extra for mask in (self, other) if mask.extra is not None]
        return Mask(
            query_segments=segmented.query_segments,
            key_segments=segmented.key_segments,
            banded=banded.banded,
            extra=extras[0] & extras[1] if len(extras) == 2 else extras[0] if extras else None,
            first=self.first if other.first is None else other.first,
            causal=self.causal or other.causal,
            band=banded.band,
        )

    def keys(self) -> jax.Array | None:
        """[B, S] segments of the keys."""
        return self.query_segments if self.key_segments is None else self.key_segments

    def dense(self, queries: int, keys: int) -> jax.Array:
        """[B or 1, 1, Q, S] booleans, True where a query sees a key."""
        return self.dense_at(self.places(queries), keys)

    def places(self, queries: int) -> jax.Array:
        """[Q] positions of the queries among the keys."""
        at_Q = jnp.arange(queries)
        return at_Q if self.first is None else self.first + at_Q

    def dense_at(self, positions_Q: jax.Array, keys: int) -> jax.Array:
        """[B or 1, 1, Q, S] of queries at these positions, whose segments and rows of `extra` this
        mask holds; the key side is whole.
        """
        before_QS = positions_Q[:, None] - jnp.arange(keys)[None, :]
        parts = []
        if self.causal:
            parts.append((before_QS >= 0)[None, None])
        if self.band is not None:
            near_QS = before_QS < self.band
            parts.append((near_QS if self.banded is None else near_QS | ~self.banded)[None, None])
        if self.query_segments is not None:
            parts.append(equal(self.query_segments, self.keys()))
        if self.extra is not None:
            parts.append(self.extra)
        if not parts:
            return jnp.ones((1, 1, *before_QS.shape), bool)
        seen = parts[0]
        for part in parts[1:]:
            seen = seen & part
        return jnp.broadcast_to(seen, (len(seen), 1, *before_QS.shape))


def same_segment(queries_BQ: jax.Array, keys_BS: jax.Array | None = None) -> Mask:
    """Keys of the query's segment; without `keys` those are the queries themselves."""
    return Mask(query_segments=queries_BQ, key_segments=keys_BS)


def causal() -> Mask:
    """Keys up to the query itself."""
    return Mask(causal=True)


def near(band: int) -> Mask:
    """The last `band` positions, the query's included, and all after it; to be joined to
    `causal`.
    """
    return Mask(band=band)


def own_past(batch: Mapping[str, jax.Array], side: str = "") -> Mask:
    """What a causal stack sees of its tokens: keys up to the query itself, of its segment.

    Args:
      batch: reads tokens and segments. With `column` it is a step of generation: its tokens are
        those from that column on, its segments those of all columns.
      side: "decoder_" for the features of a decoder.
    """
    segments_BS = batch[side + "segments"]
    if "column" not in batch:
        return same_segment(segments_BS) & causal()
    first, queries = batch["column"], batch[side + "tokens"].shape[1]
    segments_BQ = jax.lax.dynamic_slice_in_dim(segments_BS, first, queries, axis=1)
    return same_segment(segments_BQ, segments_BS) & Mask(causal=True, first=first)


def prefix(marked_BS: jax.Array, past: Mask | None = None) -> Mask:
    """Keys up to the query itself, and those marked 1 wherever they are (a prefix LM).

    Args:
      past: what `own_past` says of the tokens: of their segments alone; None: all are one segment.
    """
    past = causal() if past is None else past
    keys = marked_BS.shape[1]
    queries = keys if past.query_segments is None else past.query_segments.shape[1]
    before = Mask(causal=True, first=past.first).dense(queries, keys)
    return past.replace(causal=False, extra=before | (marked_BS == 1)[:, None, None, :])


def equal(queries_BQ: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """[B, 1, Q, S] booleans: equal numbers."""
    return (queries_BQ[:, :, None] == keys_BS[:, None, :])[:, None]


def below(order_BS: jax.Array, reach_BQ: jax.Array) -> jax.Array:
    """[B, 1, Q, S] booleans: keys whose place in an order is below the query's reach
    (permutations).
    """
    return (order_BS[:, None, :] < reach_BQ[:, :, None])[:, None]
