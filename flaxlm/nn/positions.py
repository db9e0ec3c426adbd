"""How a stack knows the order of its tokens: position encodings as exchangeable parts.

A family takes a `Position` and lets it come in at three places: added to the embeddings, added to
the attention scores, turning queries and keys. Each encoding uses one of them and leaves the others
as they are, so any of them goes with any family.

`B` batch, `L` length, `D` width, `H` heads, `Q` queries, `S` keys, `K` head dim.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from flaxlm.named import param
from flaxlm.nn.masks import Mask
from flaxlm.sharding import attention_axes, constrain


class Rotation(struct.PyTreeNode):
    """Turns pairs of channels of [B, L, H, K] by angles: multiply by cos, swapped partner by sin.

    Attributes:
      cos, sin: [B or 1, L, 1, R] fp32, R <= K channels that turn; the sign of a pair's first member
        is in sin.
      interleaved: pairs are channels (2i, 2i + 1), else (i, i + R / 2).
    """

    cos: jax.Array
    sin: jax.Array
    interleaved: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x_BLHK: jax.Array) -> jax.Array:
        """[B, L, H, K] in x's type, computed in fp32."""
        turning = self.cos.shape[-1]
        turned, rest = x_BLHK[..., :turning], x_BLHK[..., turning:]
        if self.interleaved:
            pairs = turned.reshape(*turned.shape[:-1], -1, 2)
            parts = [self._turned(turned, jnp.flip(pairs, axis=-1).reshape(turned.shape))]
        else:
            # Half by half: a TPU writes out, in fp32, what is turned around as a whole.
            halves = jnp.split(turned, 2, axis=-1)
            parts = [
                self._turned(
                    half, halves[1 - at], slice(at * turning // 2, (at + 1) * turning // 2)
                )
                for at, half in enumerate(halves)
            ]
        return jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)

    def _turned(self, x, partner, channels: slice = slice(None)):
        x_F, partner_F = x.astype(jnp.float32), partner.astype(jnp.float32)
        turned = x_F * self.cos[..., channels] + partner_F * self.sin[..., channels]
        return turned.astype(x.dtype)


class Position(nn.Module):
    """Base of the encodings: no position at all."""

    def embed(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """[B, L, D] token embeddings with what is added to them at `positions`."""
        return x_BLD

    def bias(
        self, heads: int, queries: int, keys: int, first: jax.Array | None = None
    ) -> jax.Array | None:
        """[1, H, Q, S] fp32 added to the attention scores, or None. Or what
        `nn.attention.Attention` makes such scores of, per layer (nn.relative).

        Keys start at 0, queries at `first` (`nn.masks.Mask.first`).
        """
        return None

    def rotation(self, positions_BL: jax.Array, head_dim: int) -> Rotation | None:
        """What turns queries and keys, or None."""
        return None


class Learned(Position):
    """A table of learned positions (BERT, GPT).

    Attributes:
      rows: longest position + 1 + offset.
      kernel_init: initializer of the table.
      offset: row of position 0.
    """

    rows: int
    kernel_init: Callable = jax.nn.initializers.normal(0.02)
    offset: int = 0

    @nn.compact
    def embed(self, x_BLD, positions_BL):
        table_ND = self.param(
            "table", param(self.kernel_init, "positions", "embed"),
            (self.rows, x_BLD.shape[-1]), jnp.float32,
        )  # fmt: skip
        table_ND = constrain(table_ND.astype(x_BLD.dtype), "positions", "width")
        return x_BLD + jnp.take(table_ND, positions_BL + self.offset, axis=0, mode="clip")


class Sinusoidal(Position):
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5).

    Of an odd width the last column is a sine (interleaved) or zero.

    Attributes:
      interleaved: sine and cosine of a frequency side by side, as in the paper; else all sines,
        then all cosines, as in tensor2tensor and fairseq, whose exponents run to the end of the
        half: i / (D / 2 - 1).
      base: longest wavelength / 2 pi.
    """

    interleaved: bool = True
    base: float = 10_000.0

    def embed(self, x_BLD, positions_BL):
        width = x_BLD.shape[-1]
        if self.interleaved:
            steps = np.arange(0, width, 2) / width
        else:
            steps = np.arange(width // 2) / max(width // 2 - 1, 1)
        angle_BLF = _angles(positions_BL, self.base**-steps)
        waves = [jnp.sin(angle_BLF), jnp.cos(angle_BLF)]
        if self.interleaved:
            table_BLD = jnp.stack(waves, axis=-1).reshape(*positions_BL.shape, -1)[..., :width]
        else:
            table_BLD = jnp.concatenate(waves, axis=-1)
            table_BLD = jnp.pad(table_BLD, ((0, 0), (0, 0), (0, width % 2)))
        return x_BLD + table_BLD.astype(x_BLD.dtype)


class Rotary(Position):
    """RoPE (Su et al. 2021, section 3.2): queries and keys turn by position times frequency.

    Attributes:
      interleaved: pairs (2i, 2i + 1), as in the paper, RoFormer and GPT-J; else (i, i + half), as
        in GPT-NeoX and Llama.
      share: of the channels of a head that turn (GPT-NeoX: 0.25).
      base: of the wavelengths.
    """

    interleaved: bool = False
    share: float = 1.0
    base: float = 10_000.0

    def rotation(self, positions_BL, head_dim):
        turning = int(head_dim * self.share) // 2 * 2
        angle_BLP = _angles(positions_BL, self.base ** -(np.arange(0, turning, 2) / turning))
        cos, sin = jnp.cos(angle_BLP), jnp.sin(angle_BLP)
        if self.interleaved:
            cos, sin = jnp.repeat(cos, 2, axis=-1), jnp.stack([-sin, sin], axis=-1)
            sin = sin.reshape(cos.shape)
        else:
            cos = jnp.concatenate([cos, cos], axis=-1)
            sin = jnp.concatenate([-sin, sin], axis=-1)
        return Rotation(cos[:, :, None], sin[:, :, None], interleaved=self.interleaved)


def _angles(positions_BL: jax.Array, frequency_F: np.ndarray) -> jax.Array:
    """[B, L, F] fp32: positions times frequencies."""
    frequency_F = jnp.asarray(frequency_F, jnp.float32)
    return positions_BL[..., None].astype(jnp.float32) * frequency_F[None, None]


class Alibi(Position):
    """ALiBi (Press et al. 2022): scores fall linearly with the distance, steeper head by head.

    In a causal stack this is BLOOM's bias too: that one rises with the key's position, which
    differs by a constant per query, and softmax drops constants.
    """

    def bias(self, heads, queries, keys, first=None):
        places_Q = Mask(first=first).places(queries)
        distance_QS = places_Q[:, None] - jnp.arange(keys)[None, :]
        slope_H = jnp.asarray(slopes(heads), jnp.float32)
        bias_HQS = -slope_H[:, None, None] * jnp.abs(distance_QS)[None].astype(jnp.float32)
        return _as_scores(bias_HQS)[None]


def _as_scores(bias_HQS: jax.Array) -> jax.Array:
    """Laid out as the scores that it is added to."""
    length, heads = attention_axes(len(bias_HQS))
    return constrain(bias_HQS, heads, length, "keys")


def slopes(heads: int) -> np.ndarray:
    """[H] of ALiBi: 2^(-8i/H) for a power of two; else those of the next lower one, then every
    second slope of the next higher one (the published code).
    """
    lower = 2 ** int(math.log2(heads))
    regular = 2.0 ** (-8 * np.arange(1, lower + 1) / lower)
    extra = 2.0 ** (-4 * np.arange(1, 2 * (heads - lower) + 1, 2) / lower)
    return np.concatenate([regular, extra])


def buckets(distance: np.ndarray, *, count: int, max_distance: int, two_sided: bool) -> np.ndarray:
    """T5's bucket numbers (section 2.1) of distances: key position minus query position.

    Half of the buckets of a side hold one distance each, the other half grow logarithmically up to
    `max_distance`, and the last takes all beyond. Computed on the host in fp32: a device's
    logarithm moves distances over bucket borders.

    Args:
      distance: integers of any shape.
      count: number of buckets.
      max_distance: from here on everything is in the last bucket.
      two_sided: half of the buckets for keys after the query; otherwise those count as distance 0.

    Returns:
      int32 of distance's shape, in [0, count).
    """
    if two_sided:
        count //= 2
        base, steps = np.where(distance > 0, count, 0), np.abs(distance)
    else:
        base, steps = 0, np.maximum(-distance, 0)
    exact = count // 2
    # The epsilon keeps log(0) away and is part of the definition: T5X has it too.
    ratio = steps.astype(np.float32) / exact + np.finfo(np.float32).eps
    # A Python float as the divisor keeps the quotient in fp32; numpy's own would widen it.
    scale = math.log(max_distance / exact)
    far = exact + (np.log(ratio) / scale * (count - exact)).astype(np.int32)
    return (base + np.where(steps < exact, steps, np.minimum(far, count - 1))).astype(np.int32)


class RelativeBias(Position):
    """T5's bias of the attention scores by bucketed distance; one table serves all layers of a
    stack.

    Attributes:
      count: number of buckets.
      max_distance: see `buckets`.
      two_sided: see `buckets`; False in causal stacks.
    """

    count: int = 32
    max_distance: int = 128
    two_sided: bool = False

    @nn.compact
    def bias(self, heads, queries, keys, first=None):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # as T5X
        table = self.param(
            "table", param(init, "buckets", "heads"), (self.count, heads), jnp.float32
        )
        # A bias depends on the distance alone: look up one value per distance, then spread them
        # over the diagonals.
        furthest = queries - 1 if first is None else keys - 1
        distance = np.arange(-furthest, keys)
        bucket = buckets(
            distance, count=self.count, max_distance=self.max_distance, two_sided=self.two_sided
        )
        by_distance_HN = jnp.take(table.T, jnp.asarray(bucket), axis=1)
        places_Q = Mask(first=first).places(queries)
        diagonal_QS = jnp.arange(keys)[None, :] - places_Q[:, None] + furthest
        bias_HQS = jnp.take(by_distance_HN, diagonal_QS, axis=1)
        return _as_scores(bias_HQS)[None]
