"""Moments of gradients, and the type that they are kept in between steps.

Whatever the type, a step computes in float32: it reads the moments, widens them, and rounds what it
leaves. A first moment may be rounded to the nearest bfloat16: it moves by a tenth of a gradient at
every step. A second moment may not. Its steps are a thousandth of it (b2 = 0.999), bfloat16 has 256
values per power of two, so the nearest one is where it was and it never falls again. It is rounded
up or down at random, with the probability that makes the expected value right.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def adam(b1: float, b2: float, eps: float, *, debias: bool = True) -> optax.GradientTransformation:
    """optax's, or the same without dividing the moments by 1 - b^t."""
    corrected = optax.scale_by_adam(b1, b2, eps)
    if debias:
        return corrected

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        steps = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return steps, state._replace(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(corrected.init, update)


def kept(
    transformation: optax.GradientTransformation, *, first: str, second: str
) -> optax.GradientTransformation:
    """`transformation` with its moments kept in the types of these names.

    Args:
      transformation: its state has `count` and `mu`, and may have `nu`.
      first, second: of `mu` and `nu`, "float32" or "bfloat16".
    """
    types = {"mu": TYPES[first], "nu": TYPES[second]}
    narrow = {name: dtype for name, dtype in types.items() if dtype != jnp.float32}
    if not narrow:
        return transformation

    def init(params):
        state = transformation.init(params)
        return _replaced(state, narrow, lambda name, x: x.astype(narrow[name]))

    def update(updates, state, params=None):
        wide = _replaced(state, narrow, lambda name, x: x.astype(jnp.float32))
        updates, new = transformation.update(updates, wide, params)
        draws = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(new))))

        def rounded(name, x):
            if name == "mu":
                return x.astype(narrow[name])
            return round_at_random(x, jax.random.fold_in(next(draws), new.count))

        return updates, _replaced(new, narrow, rounded)

    return optax.GradientTransformation(init, update)


def _replaced(state, names: Mapping, function: Callable):
    """`function(name, leaf)` of every leaf of the fields `names` of a state that have any."""
    fields = {
        name: jax.tree.map(lambda x, name=name: function(name, x), getattr(state, name))
        for name in names
        if hasattr(state, name)
    }
    return state._replace(**fields)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """A bfloat16 next to `x` (float32, finite), drawn so that x is its expected value."""
    # A bfloat16 is the upper half of a float32. Random bits added to the lower half carry into it
    # as often as they should.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(cut, jnp.float32).astype(jnp.bfloat16)
