"""Parameters that know the names of their dims, and trees mapped by these names.

Between `init` and `unbox` a parameter is a `Named`; afterwards a tree of plain arrays goes with a
dict from path to names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from flaxlm.sharding import current


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter with the names of its dims, between `init` and `unbox`."""

    value: Any
    axes: tuple[str, ...] = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index, params):
        axes = list(self.axes)
        axes.insert(index, params[nn.PARTITION_NAME])
        return self.replace(axes=tuple(axes))

    def remove_axis(self, index, params):
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])


def param(init: Callable, *axes: str) -> Callable:
    """An initializer whose result carries its dim names. Every parameter of every model is made
    with it.

    Raises:
      KeyError: at trace time, if a name is not in the rules.
    """

    def named(*args, **kwargs):
        value = init(*args, **kwargs)
        assert len(axes) == value.ndim, f"parameter of shape {value.shape} has dim names {axes}"
        current().spec(axes)
        return Named(value, axes)

    return named


def _is_named(x) -> bool:
    return isinstance(x, Named)


def unbox(tree):
    """A tree of `Named` to a tree of arrays."""
    return jax.tree.map(lambda x: x.value if _is_named(x) else x, tree, is_leaf=_is_named)


def axes_of(tree) -> dict[str, tuple[str, ...]]:
    """{"a/b/kernel": ("embed", "mlp")} of a tree of `Named`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_named)
    return {path_name(path): leaf.axes for path, leaf in leaves}


def path_name(path) -> str:
    """A key path as "a/b/c"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def map_params(function: Callable, tree, axes: Mapping[str, tuple[str, ...]]):
    """`function(leaf, dim names)` of every leaf of a parameter tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf, axes[path_name(path)]), tree
    )


def map_state(function: Callable, tree, params, axes: Mapping[str, tuple[str, ...]]):
    """`function(leaf, dim names)` of every leaf of a state tree (parameters, optimizer state); None
    names a whole dim.

    A leaf is laid out like the parameter whose path its own path contains, if the shapes agree: so
    moments and averages follow their parameter, while counters and factored statistics (vectors,
    tiny) are whole on every device.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}

    def visit(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            for stop in range(len(parts), start, -1):
                name = "/".join(parts[start:stop])
                if name in shapes and shapes[name] == leaf.shape:
                    return function(leaf, axes[name])
        return function(leaf, (None,) * leaf.ndim)

    return jax.tree_util.tree_map_with_path(visit, tree)
