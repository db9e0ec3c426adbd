"""Recurrent layers (Hochreiter and Schmidhuber 1997). `B` batch, `S` steps, `I` width of the
inputs, `H` of the state, `G` of the four gates, 4 * H.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from flaxlm.named import param
from flaxlm.nn.linear import project
from flaxlm.sharding import constrain

State = tuple[jax.Array, jax.Array]  # (output, cell), each [B, H]


def within(bound: float):
    """An initializer: uniform from -bound to bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LSTM(nn.Module):
    """One layer over the steps of a row in their order. Gates stand in the order of PyTorch: input,
    forget, cell, output. Parameters in, in_bias, state.

    Attributes:
      width: H.
    """

    width: int

    @nn.compact
    def __call__(
        self, x_BSI: jax.Array, live_BS: jax.Array, start: State | None = None
    ) -> tuple[jax.Array, State]:
        """Outputs [B, S, H], and the state behind the last step.

        Args:
          x_BSI: the inputs.
          live_BS: bool; where it is False nothing happens, the state stays what it was.
          start: the state before the first step; None: zeros.
        """
        init = within(self.width**-0.5)
        gates_BSG = project(self, "in", x_BSI, 4 * self.width, ("embed", "width"), init, zeros)
        shape = (self.width, 4 * self.width)
        kernel_HG = self.param("state", param(init, "embed", "width"), shape, jnp.float32)
        # Gathered over the mesh once, not in every step.
        kernel_HG = constrain(kernel_HG, "width", "width").astype(x_BSI.dtype)
        if start is None:
            start = (jnp.zeros((len(x_BSI), self.width), x_BSI.dtype),) * 2
        gates_SBG, live_SB1 = gates_BSG.swapaxes(0, 1), jnp.asarray(live_BS).T[..., None]
        out_SBH, cell_SBH = _states(gates_SBG, kernel_HG, start, live_SB1)
        return out_SBH.swapaxes(0, 1), (out_SBH[-1], cell_SBH[-1])


def _cell(gates_BG: jax.Array, before: State, live_B1: jax.Array) -> State:
    """The state behind a step whose gates are known."""
    enter, keep, new, leave = jnp.split(gates_BG, 4, axis=1)
    cell = jax.nn.sigmoid(keep) * before[1] + jax.nn.sigmoid(enter) * jnp.tanh(new)
    after = (jax.nn.sigmoid(leave) * jnp.tanh(cell), cell)
    return jax.tree.map(lambda new, old: jnp.where(live_B1, new, old), after, before)


@jax.custom_vjp
def _states(gates_SBG, kernel_HG, start: State, live_SB1) -> State:
    """The states behind all steps, [S, B, H] each; `gates` without what the state adds to them.

    With a derivative of its own: the kernel's is one product over all steps, where that of a scan
    adds up one per step, each summed over the devices that have other rows.
    """

    def step(before, inputs):
        gates_BG, live_B1 = inputs
        after = _cell(gates_BG + before[0] @ kernel_HG, before, live_B1)
        return after, after

    return jax.lax.scan(step, start, (gates_SBG, live_SB1))[1]


def _forward(gates_SBG, kernel_HG, start, live_SB1):
    states = _states(gates_SBG, kernel_HG, start, live_SB1)
    return states, (gates_SBG, kernel_HG, start, live_SB1, states)


def _backward(saved, d_states):
    gates_SBG, kernel_HG, start, live_SB1, states = saved
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, states)
    gates_SBG = gates_SBG + before[0] @ kernel_HG

    def step(d_after, inputs):
        d_here, gates_BG, before, live_B1 = inputs
        d_after = jax.tree.map(jnp.add, d_after, d_here)
        _, pull = jax.vjp(lambda gates, state: _cell(gates, state, live_B1), gates_BG, before)
        d_gates_BG, (d_out, d_cell) = pull(d_after)
        return (d_out + d_gates_BG @ kernel_HG.T, d_cell), d_gates_BG

    none = jax.tree.map(jnp.zeros_like, start)
    inputs = (d_states, gates_SBG, before, live_SB1)
    d_start, d_gates_SBG = jax.lax.scan(step, none, inputs, reverse=True)
    d_kernel_HG = jnp.einsum("SBH,SBG->HG", before[0], d_gates_SBG)
    return d_gates_SBG, d_kernel_HG, d_start, None


_states.defvjp(_forward, _backward)
