"""A stack of equal layers. Its parameters are [layers, ...] however it is computed."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from flaxlm.nn.compute import Compute


def stack(
    block: nn.Module,
    x: jax.Array,
    *shared,
    each: Sequence = (),
    depth: int,
    compute: Compute,
    train: bool,
) -> Any:
    """`depth` layers of one block in turn. Call it in the compact method of the block's parent.

    Args:
      block: called per layer as block(x, *each[layer], *shared, train=...), returns the next x.
        Its parameters get a first dim "layers" of size depth; every layer draws its own initial
        values and its own dropout. What it sows in the collection "layers" is stacked likewise.
      x: input of the first layer, an array or a tree of arrays.
      *shared: arrays, trees of arrays or None that every layer gets as they are.
      each: arrays [depth, ...] or trees of them, of which layer i gets the i-th entry.
      depth: number of layers.
      compute: scanned or unrolled, and what to keep for the backward pass.
      train: whether dropout is on.

    Returns:
      The output of the last layer, as x.
    """

    def layer(block, x, each, *shared):
        return block(x, *each, *shared, train=train), None

    if compute.policy is not None:
        # Merging common subexpressions must not undo the recomputation; in a loop it cannot.
        layer = nn.remat(layer, policy=compute.policy, prevent_cse=not compute.scan)
    layers = nn.scan(
        layer,
        variable_axes={"params": 0, "layers": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast,) * len(shared)),
        length=depth,
        unroll=1 if compute.scan else depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return layers(block, x, tuple(each), *shared)[0]
