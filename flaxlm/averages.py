"""A moving average of the parameters, kept in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Average(NamedTuple):
    """State of `average`: the moving average of the parameters, in their own tree."""

    params: Any


def average(rate: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; the last link of a chain, updates
    pass through.
    """

    def init(params):
        return Average(jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        def blend(old, param, change):
            return rate * old + (1 - rate) * (param + change)

        return updates, Average(jax.tree.map(blend, state.params, params, updates))

    return optax.GradientTransformation(init, update)


def averaged(opt, params):
    """The averaged parameters in an optimizer state, or `params` where no average is kept."""
    states = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, Average))
    averages = [state.params for state in states if isinstance(state, Average)]
    return averages[0] if averages else params
