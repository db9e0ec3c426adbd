"""A stack of equal layers. Its parameters are [layers, ...], however it is computed; for generation
they may come layer by layer.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.nn.compute import Compute


def stack(
    block: nn.Module,
    x: jax.Array,
    *shared,
    each: Sequence = (),
    common: Sequence[str] = (),
    depth: int,
    compute: Compute,
    train: bool,
    collect: bool = False,
) -> Any:
    """`depth` layers of one block in turn. Call it in the compact method of the block's parent.

    Args:
      block: called per layer as block(x, *each[layer], *shared, train=...), returns the next x.
        Its parameters get a first dim "layers" of size depth; every layer draws its own initial
        values and its own dropout. What it sows in the collections "layers" and "attention" is
        stacked likewise, and so are the keys and values of `nn.attention.Attention`.
      x: input of the first layer, an array or a tree of arrays.
      *shared: arrays, trees of arrays or None that every layer gets as they are.
      each: arrays [depth, ...] or trees of them, of which layer i gets the i-th entry.
      common: names of the block's parts whose parameters all layers have in common. They have no
        dim "layers", whose gradient is the sum over the layers; dropout stays each layer's own.
      depth: number of layers.
      compute: scanned or unrolled, and what to keep for the backward pass.
      train: whether dropout is on.
      collect: the block returns a pair, the next x and what is to be collected over the layers.

    Returns:
      The output of the last layer, as x; with `collect` a pair of it and the layers' collected
      values, stacked [depth, ...].
    """
    if _is_apart(block):
        assert not (common or collect or train), "layers come apart for generation alone"
        return _in_turn(block, x, each, shared, depth)

    def layer(block, x, each, *shared):
        found = block(x, *each, *shared, train=train)
        return found if collect else (found, None)

    if compute.policy is not None:
        # Merging common subexpressions must not undo the recomputation; in a loop it cannot.
        layer = nn.remat(layer, policy=compute.policy, prevent_cse=not compute.scan)
    repeated = partial(
        nn.scan,
        variable_axes=dict.fromkeys(("params", "layers", "attention", "past", "present"), 0),
        variable_broadcast=_COMMON,
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast,) * len(shared)),
        length=depth,
        unroll=1 if compute.scan else depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    if not common:
        layers = repeated(layer)
    elif block.is_initializing():
        layers = _first_of(common, repeated(layer), depth)
    else:
        layers = _apart(common, repeated(_together(layer)))
    x, collected = layers(block, x, tuple(each), *shared)
    return (x, collected) if collect else x


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with every stack cut into its layers: where a leaf was [layers, ...], a tuple of
    arrays. `stack` takes either, and returns keys and values as it got the parameters.

    A loop over tokens that reads the stack copies every layer out of it for every token: XLA lifts
    no slice out of a loop. On a CPU the cut copies nothing.
    """

    def cut(leaf):
        rows = np.asarray(leaf)
        return tuple(jax.device_put(rows[layer]) for layer in range(len(rows)))

    return {
        name: jax.tree.map(cut, part)
        if name == "layers"
        else (apart(part) if isinstance(part, Mapping) else part)
        for name, part in params.items()
    }


def _is_tuple(leaf) -> bool:
    return isinstance(leaf, tuple)


def _is_apart(block: nn.Module) -> bool:
    params = block.variables["params"] if "params" in block.variables else {}
    return any(map(_is_tuple, jax.tree.leaves(params, is_leaf=_is_tuple)))


def _in_turn(block: nn.Module, x, each: Sequence, shared: tuple, depth: int):
    """One layer after the other, each with its own part of the block's variables."""
    layer = block.clone(parent=None, name=None)
    kept = ["present"] if block.is_mutable_collection("present") else []
    sown = []
    for number in range(depth):
        of_layer = itemgetter(number)
        variables = jax.tree.map(of_layer, block.variables, is_leaf=_is_tuple)
        own = [jax.tree.map(of_layer, one) for one in each]
        x, present = layer.apply(variables, x, *own, *shared, train=False, mutable=kept)
        sown.append(present)
    for collection, parts in jax.tree.map(lambda *layers: layers, *sown).items():
        for name, part in parts.items():
            block.put_variable(collection, name, part)
    return x


# The collection that parameters in common are in while a stack runs: the loop hands it to every
# layer as it is. Outside and inside of the loop they are parameters like the others.
_COMMON = "common"


def _apart(common: Sequence[str], layers):
    """`layers` with the parameters `common` in a collection of their own."""

    def view(variables):
        params = variables["params"]
        own = {name: part for name, part in params.items() if name not in common}
        return {"params": own, _COMMON: {name: params[name] for name in common}}

    return nn.map_variables(layers, ("params", _COMMON), view)


def _together(layer):
    """The inverse of `_apart`, inside the loop."""

    def view(variables):
        return {"params": {**variables.get("params", {}), **variables[_COMMON]}}

    return nn.map_variables(layer, ("params", _COMMON), view)


def _first_of(common: Sequence[str], layers, depth: int):
    """`layers` when initial values are drawn: of what is common, those of the first layer stay."""

    def change(variables, function):
        params = variables.get("params", {})
        boxed = partial(jax.tree.map, function, is_leaf=lambda x: hasattr(x, "remove_axis"))
        changed = {name: boxed(params[name]) for name in common if name in params}
        return {"params": {**params, **changed}}

    def first(box):
        return box.replace_boxed(box.value[0]).remove_axis(0, {})

    def repeat(box):
        whole = jnp.broadcast_to(box.value, (depth, *box.value.shape))
        return box.replace_boxed(whole).add_axis(0, {nn.PARTITION_NAME: "layers"})

    return nn.map_variables(
        layers,
        "params",
        lambda variables: change(variables, repeat),
        lambda variables: change(variables, first),
        init=True,
        mutable=True,
    )
