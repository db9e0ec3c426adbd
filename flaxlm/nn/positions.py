"""T5's relative position bias: one learned number per head and bucket of distances.

`H` heads, `Q` queries, `S` keys.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.sharding import constrain, param


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


class RelativeBias(nn.Module):
    """Bias of the attention scores by bucketed distance; one table serves all layers of a stack.

    Attributes:
      heads: H.
      count: number of buckets.
      max_distance: see `buckets`.
      two_sided: see `buckets`.
    """

    heads: int
    count: int
    max_distance: int
    two_sided: bool

    @nn.compact
    def __call__(self, queries: int, keys: int) -> jax.Array:
        """[1, H, Q, S] fp32 bias for queries and keys that both start at position 0."""
        init = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # as T5X
        table = self.param(
            "table", param(init, "buckets", "heads"), (self.count, self.heads), jnp.float32
        )
        # A bias depends on the distance alone: look up one value per distance, then spread them
        # over the diagonals.
        distance = np.arange(-(queries - 1), keys)
        bucket = buckets(
            distance, count=self.count, max_distance=self.max_distance, two_sided=self.two_sided
        )
        by_distance_HN = jnp.take(table.T, jnp.asarray(bucket), axis=1)
        diagonal_QS = jnp.arange(keys)[None, :] - jnp.arange(queries)[:, None] + (queries - 1)
        bias_HQS = jnp.take(by_distance_HN, diagonal_QS, axis=1)
        return constrain(bias_HQS, "heads", "length", "keys")[None]
