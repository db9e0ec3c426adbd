"""Recurrent layers: cell by cell, their derivative, and as PyTorch has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named
from flaxlm.nn.recurrent import LSTM


def _cells(x, params, start):
    """The outputs of an LSTM for one row [S, I], gate by gate, and its last state."""
    (h, c), out = start, []
    for step in x:
        gates = step @ params["in"] + params["in_bias"] + h @ params["state"]
        i, f, g, o = np.split(gates, 4)
        i, f, o = (1 / (1 + np.exp(-some)) for some in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        out.append(h)
    return np.array(out), (h, c)


def test_a_row_goes_through_the_cells_that_its_words_fill():
    random = np.random.default_rng(1)
    x, start = random.normal(size=(2, 5, 3)), random.normal(size=(2, 2, 4))
    live = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    params = {"in": random.normal(size=(3, 16)), "in_bias": random.normal(size=16),
              "state": random.normal(size=(4, 16))}  # fmt: skip
    out, state = LSTM(4).apply({"params": params}, jnp.array(x), live, tuple(jnp.array(start)))
    for row in range(2):
        expected, last = _cells(x[row][live[row]], params, start[:, row])
        np.testing.assert_allclose(out[row][live[row]], expected, atol=1e-5)
        np.testing.assert_allclose([some[row] for some in state], last, atol=1e-5)


def test_the_derivative_of_a_row_is_that_of_its_steps():
    random = np.random.default_rng(5)
    x, start = (jnp.array(random.normal(size=some)) for some in ((2, 4, 3), (2, 2, 4)))
    live = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], bool)
    model, weight = LSTM(4), jnp.array(random.normal(size=(2, 4, 4)))
    params = named.unbox(model.init(jax.random.key(0), x, live)["params"])

    def plain(params, x, start):
        (h, c), total = start, 0.0
        for s in range(4):
            gates = x[:, s] @ params["in"] + params["in_bias"][None] + h @ params["state"]
            i, f, g, o = jnp.split(gates, 4, axis=1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h, on = jax.nn.sigmoid(o) * jnp.tanh(new_c), live[:, s, None]
            h, c = jnp.where(on, new_h, h), jnp.where(on, new_c, c)
            total += (h * weight[:, s]).sum()
        return total + (c * 2).sum()

    def ours(params, x, start):
        out, (_, cell) = model.apply({"params": params}, x, live, tuple(start))
        return (out * weight).sum() + (cell * 2).sum()

    each = [
        jax.jit(jax.value_and_grad(some, (0, 1, 2)))(params, x, start) for some in (plain, ours)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *each)


def test_the_gates_are_those_of_torch_as_installed():
    torch = pytest.importorskip("torch", reason="needs the parity extra: torch")
    theirs = torch.nn.LSTM(3, 4, batch_first=True)
    weights = {name: some.detach().numpy() for name, some in theirs.named_parameters()}
    params = {
        "in": weights["weight_ih_l0"].T,
        "in_bias": weights["bias_ih_l0"] + weights["bias_hh_l0"],
        "state": weights["weight_hh_l0"].T,
    }
    x = np.random.default_rng(4).normal(size=(2, 5, 3)).astype(np.float32)
    out, (_, cell) = LSTM(4).apply({"params": params}, jnp.array(x), np.ones((2, 5), bool))
    with torch.no_grad():
        expected, (_, last) = theirs(torch.tensor(x))
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(cell, last[0].numpy(), atol=1e-5)
