"""The health of a training step, judged inside the step itself: are loss and gradients numbers, and
how far do they stand out from those of the steps before?

A step that is no good is left out: parameters, optimizer and memory stay what they were. The
verdict is made on the devices, so it costs the host nothing, all processes have the same, and a run
that is killed and resumed judges as the straight one does: the history is part of the state.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError
from flaxlm.named import path_name

WINDOW = 128  # finite steps that a loss and a gradient norm are compared with

_NORMAL = 1.4826  # times the median absolute deviation: the standard deviation, if it is normal
_LEAST = 0.01  # of the median, the least deviation that is believed: a plateau is no measure


@dataclass(frozen=True)
class Divergence:
    """What a run does about steps that are no good: a loss or a gradient that is not finite.

    Each is left out. After `skips` of them in a row the run goes back to the newest checkpoint from
    before the first, and goes on with the data behind the last. After `rollbacks` of that it stops
    with exit code 70.

    A deviation is counted in standard deviations from the median of the last `WINDOW` steps, and
    the median absolute deviation is the measure of it, so that a few outliers do not hide the next.

    Attributes:
      skips: bad steps in a row after which the run goes back, at least 1.
      rollbacks: how often it may, over all its starts; 0 stops at the first.
      spike: a loss or gradient norm that lies this many deviations above is reported; 0 is never.
      skip_spike: one this far above is no good either: left out, and counted in `skips`; 0 is never
        (Groeneveld et al. 2024, OLMo, leave out what is 6 above a running mean).
    """

    skips: int = 3
    rollbacks: int = 3
    spike: float = 10.0
    skip_spike: float = 0.0

    def __post_init__(self):
        least = {"skips": 1, "rollbacks": 0, "spike": 0, "skip_spike": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise ConfigError(
                    f"run.divergence.{name}={getattr(self, name)}: must be at least {smallest}"
                )


class Health(NamedTuple):
    """What is remembered from step to step.

    Attributes:
      skipped: steps that were left out so far.
      streak: of them the last in a row, 0 after a good step.
      seen: finite steps so far.
      recent: [2, WINDOW] loss and gradient norm of the last of them, a ring.
    """

    skipped: jax.Array
    streak: jax.Array
    seen: jax.Array
    recent: jax.Array


def fresh() -> Health:
    """Of a run that begins."""
    zero = jnp.zeros((), jnp.int32)
    return Health(zero, zero, zero, jnp.zeros((2, WINDOW), jnp.float32))


def judge(
    health: Health, loss: jax.Array, norm: jax.Array, *, carry, skip_spike: float
) -> tuple[Health, jax.Array, jax.Array]:
    """Judge a step by its numbers.

    Args:
      loss, norm: of the whole batch.
      carry: what the model hands to its next step.
      skip_spike: of `Divergence`.

    Returns:
      (its successor, whether the step is good, [2] deviations of loss and norm: 0 until there are
      `WINDOW` steps to compare with).
    """
    values = jnp.stack([loss, norm]).astype(jnp.float32)
    finite = jnp.isfinite(values).all() & all_finite(carry)
    median = _median(health.recent)
    spread = _NORMAL * _median(jnp.abs(health.recent - median[:, None]))
    deviations = (values - median) / jnp.maximum(spread, _LEAST * jnp.abs(median) + 1e-30)
    deviations = jnp.where(health.seen >= WINDOW, deviations, 0.0)
    good = finite & (deviations.max() < skip_spike) if skip_spike else finite
    # A spike is remembered too: what lasts is no spike, but where the run now is.
    recent = health.recent.at[:, health.seen % WINDOW].set(values)
    following = Health(
        skipped=health.skipped + ~good,
        streak=jnp.where(good, 0, health.streak + 1),
        seen=health.seen + finite,
        recent=jnp.where(finite, recent, health.recent),
    )
    return following, good, deviations


def all_finite(tree) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all() if leaves else jnp.array(True)


def norms(tree, stacked: Collection[str] = ()) -> dict[str, jax.Array]:
    """{path: norm} of a tree of parameters or of their gradients; [layers] norms of those whose
    paths are in `stacked`, whose first dim is the layer.
    """

    def norm(path, x):
        dims = range(1 if path in stacked else 0, x.ndim)
        return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(tuple(dims)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): norm(path_name(path), x) for path, x in leaves}


def joint_norm(parts: dict[str, jax.Array]) -> jax.Array:
    """The norm of a tree from `norms`."""
    return jnp.sqrt(sum(jnp.square(x).sum() for x in parts.values()))


def _median(values: jax.Array) -> jax.Array:
    """[2] the upper median of [2, WINDOW]."""
    return jnp.sort(values, axis=1)[:, WINDOW // 2]
