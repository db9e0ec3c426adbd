"""Rates of parts of a model, relative to the learning rate, and when they begin to learn: what
fine-tuning does to leave a pretrained body nearly as it is while a new head learns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxlm.errors import ConfigError
from flaxlm.named import path_name

# What lies under the layers.
_BELOW = ("embed", "widen", "positions", "embedding_norm")


@dataclass(frozen=True)
class Rate:
    """The rate of one part of a model.

    Attributes:
      part: path of parameters, "encoder/embed"; all below it are meant.
      scale: times the learning rate, weight decay included; 0 leaves the part as it was.
    """

    part: str
    scale: float

    def __post_init__(self):
        if not self.scale >= 0:
            raise ConfigError(f"optimizer.rates: {self.part} has the scale {self.scale}: 0 or more")

    def covers(self, path: str) -> bool:
        """Whether a parameter belongs to the part."""
        return path == self.part or path.startswith(f"{self.part}/")


def scaled(
    rates: Sequence[Rate], layer_decay: float, axes: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    """Multiply updates by the rates of their parameters. Where several cover one, all count.

    With n layers, embeddings take layer_decay^(n + 2), the i-th layer (from 0) layer_decay^(n + 1 -
    i), and what stands above the layers the whole rate (Clark et al. 2020, appendix A, and the
    published code, model/optimization.py). Layers that have their parameters in common count as the
    last one.

    Args:
      axes: {parameter path: dim names}; a parameter whose first dim is "layers" is a stack.

    Raises:
      ConfigError: a rate is of a part that the model lacks.
    """
    for rate in rates:
        if not any(rate.covers(path) for path in axes):
            tops = sorted({path.partition("/")[0] for path in axes})
            raise ConfigError(
                f"optimizer.rates: the model has no parameters {rate.part!r}; at the top it has "
                f"{', '.join(tops)}"
            )

    def update(updates, params=None):
        depth = _depth(updates, axes)

        def scale(path, leaf):
            name = path_name(path)
            own = 1.0
            for rate in rates:
                own *= rate.scale if rate.covers(name) else 1.0
            factor = own * layer_decay ** _above(name, axes[name], leaf, depth)
            return leaf * jnp.asarray(factor, leaf.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def unfrozen(every: int, axes: Mapping[str, tuple[str, ...]]) -> optax.GradientTransformation:
    """Let updates through from the top down, one more layer after every so many steps (gradual
    unfreezing, Howard and Ruder 2018, section 3.3): what stands above the layers at once, the last
    layer from step `every` on, the first of n from n * every, what lies below them after that.

    The last link but for an average: a layer that waits gathers moments, and the norm of the
    gradients is that of all. Nothing is compiled anew when a layer wakes, nor computed less before.
    """

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        depth = _depth(updates, axes)

        def awake(path, leaf):
            name = path_name(path)
            group = np.maximum(_above(name, axes[name], leaf, depth) - 1, 0)
            return jnp.where(state.count >= every * group, leaf, 0)

        found = jax.tree_util.tree_map_with_path(awake, updates)
        return found, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _depth(tree, axes: Mapping[str, tuple[str, ...]]) -> int:
    """Layers of the deepest stack of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    stacks = [x.shape[0] for path, x in leaves if axes[path_name(path)][:1] == ("layers",)]
    return max(stacks, default=1)


def _above(name: str, axes: tuple[str, ...], leaf: jax.Array, depth: int) -> np.ndarray:
    """How many steps of decay a parameter takes, in a shape that broadcasts against it."""
    if axes[:1] == ("layers",):
        count = leaf.shape[0]
        return (count + 1 - np.arange(count)).reshape(count, *[1] * (leaf.ndim - 1))
    parts = name.split("/")
    below = any(part in parts for part in _BELOW)
    steps = 2 if "layers" in parts else depth + 2 if below else 0
    return np.full((1,) * leaf.ndim, steps)
