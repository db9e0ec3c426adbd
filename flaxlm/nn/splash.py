"""Attention on TPUs by the Pallas kernel that jax brings ("splash": blocks of pairs that a mask
rules out are never computed).

It knows causal order, a band and segments; scores stay in fast memory, and the backward pass
computes them anew from the queries, the keys and one number per query. `B` batch, `L` length, `Q`
queries, `S` keys, `H` heads, `K` head dim.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from flaxlm.nn.masks import Mask, equal

LANES = 128  # of the vector unit: lengths are multiples of it

# Largest blocks of queries and keys, and of keys that are computed on at a time. A step of the grid
# costs a fixed time beside its products, so blocks are as large as fast memory takes: the three
# kernels compile for v5e and v5p with them, at head dim 128 in fp32 too.
_BLOCK, _KEYS_AT_ONCE = 1024, 512


def attention(q_BQHK, k_BSHK, v_BSHK, mask: Mask, *, interpret: bool = False) -> jax.Array:
    """[B, Q, H, K]: see `nn.kernels.attend`; the lengths are multiples of LANES.

    Args:
      interpret: run it as an ordinary program, for tests.
    """
    queries, keys = q_BQHK.shape[1], k_BSHK.shape[1]
    kernel = partial(_kernel, queries, keys, mask.causal, interpret=interpret)
    q_BHQK, k_BHSK, v_BHSK = (jnp.swapaxes(x, 1, 2) for x in (q_BQHK, k_BSHK, v_BSHK))
    segments = None
    if mask.query_segments is not None:
        segments = splash_attention_kernel.SegmentIds(mask.query_segments, mask.keys())

    def run(band, q_BHQK, k_BHSK, v_BHSK, segments):
        made = kernel(band=band, heads=q_BHQK.shape[1])
        return jax.vmap(made)(q_BHQK, k_BHSK, v_BHSK, segments)

    arguments = (q_BHQK, k_BHSK, v_BHSK, segments)
    if mask.band is None or mask.banded is None:
        out_BHQK = run(mask.band, *arguments)
    else:
        out_BHQK = jax.lax.cond(
            mask.banded, partial(run, mask.band), partial(run, None), *arguments
        )
    out_BQHK = jnp.swapaxes(out_BHQK, 1, 2)
    if mask.key_segments is None:
        return out_BQHK
    # A query may see no key here. The kernel would give it an average of all values, and in the
    # backward pass weights that do not add up to 1.
    seen_BQ = equal(mask.query_segments, mask.keys()).any(axis=(1, 3))
    return jnp.where(seen_BQ[:, :, None, None], out_BQHK, 0)


def _kernel(queries, keys, causal, *, band: int | None, heads: int, interpret: bool):
    """The kernel of one row, [H, Q, K] and two [H, S, K] -> [H, Q, K]. Which blocks there are is
    found out on the host.
    """
    assert causal or band is None
    one = _Past(queries, keys, keys if band is None else band) if causal else _All(queries, keys)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([one] * heads),
        block_sizes=_blocks(queries, keys, band),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


@dataclass(frozen=True)
class _All(splash_attention_mask.Mask):
    """Every pair. jax's own masks make all blocks in full to look at them, 10^9 pairs at 32k."""

    queries: int
    keys: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.queries, self.keys

    def __getitem__(self, block) -> np.ndarray:
        """What a block of pairs holds; one element stands for blocks that are all alike."""
        return np.ones((1, 1), bool)


@dataclass(frozen=True)
class _Past(_All):
    """The last `band` keys, the query's own included."""

    band: int

    @property
    def q_sequence(self) -> np.ndarray:
        """What the kernel hands to `mask_function` as the queries."""
        return np.arange(self.queries, dtype=np.int32)

    def mask_function(self, query, key):
        near = query >= key
        return near if self.band >= self.keys else near & (query - key < self.band)

    def __getitem__(self, block) -> np.ndarray:
        rows, columns = block
        nearest, farthest = rows.start - columns.stop + 1, rows.stop - 1 - columns.start
        if nearest >= 0 and farthest < self.band:
            return np.ones((1, 1), bool)
        if farthest < 0 or nearest >= self.band:
            return np.zeros((1, 1), bool)
        query, key = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        return self.mask_function(query[:, None], key[None, :])


def _blocks(queries: int, keys: int, band: int | None) -> splash_attention_kernel.BlockSizes:
    def largest(length, limit):
        return next(size for size in (1024, 512, 256, 128) if size <= limit and length % size == 0)

    # A narrow band in large blocks would be mostly what it leaves out.
    limit = _BLOCK if band is None or band > _BLOCK // 2 else _BLOCK // 2
    block_q, block_kv = largest(queries, limit), largest(keys, limit)
    compute = largest(block_kv, _KEYS_AT_ONCE)
    return splash_attention_kernel.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=compute,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=compute,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
