"""Optimizers: per-layer statistics, decay masks, schedules at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm import optim

AXES = {
    "stack/kernel": ("layers", "embed", "mlp"),
    "stack/scale": ("layers", "width"),
    "table": ("vocab", "embed"),
    "bias": ("buckets", "heads"),
}


def trees():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.array(random.normal(size=shape), jnp.float32)

    make = lambda: {
        "stack": {"kernel": draw(3, 128, 160), "scale": draw(3, 128)},
        "table": draw(200, 128),
        "bias": draw(32, 4),
    }
    return make(), [make() for _ in range(3)]


def run(tx, params, gradients):
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def unstack(tree):
    layers = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], tree["stack"]) for i in range(3)}
    return {**layers, "table": tree["table"], "bias": tree["bias"]}


UNSTACKED_AXES = {
    **{f"layer_{i}/kernel": ("embed", "mlp") for i in range(3)},
    **{f"layer_{i}/scale": ("width",) for i in range(3)},
    "table": AXES["table"],
    "bias": AXES["bias"],
}


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Adafactor, optim.Lamb, optim.Muon])
def test_stacked_layers_train_as_separate_ones(kind):
    params, gradients = trees()
    optimizer = kind(optim.Constant(0.01), clip=0.0, decay=0.1)
    stacked, _ = run(optimizer.build(AXES, 3), params, gradients)
    separate, _ = run(
        optimizer.build(UNSTACKED_AXES, 3),
        unstack(params),
        [unstack(gradient) for gradient in gradients],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        unstack(stacked),
        separate,
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), stacked, params)
    assert all(distance > 1e-4 for distance in jax.tree.leaves(moved))


def test_adafactor_is_the_published_one():
    """One matrix against the algorithm written out (Shazeer and Stern 2018, algorithm 4, with
    T5's settings).
    """
    params, gradients = trees()
    weight, grads = params["table"], [gradient["table"] for gradient in gradients]
    found, state = run(
        optim.Adafactor(optim.Constant(0.01)).build({"w": ("vocab", "embed")}, 3),
        {"w": weight},
        [{"w": gradient} for gradient in grads],
    )
    expected, row, column = np.asarray(weight, np.float64), 0.0, 0.0
    for step, gradient in enumerate(np.asarray(g, np.float64) for g in grads):
        decay = 1 - (step + 1) ** -0.8
        square = gradient**2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(axis=1)
        column = decay * column + (1 - decay) * square.mean(axis=0)
        update = gradient / np.sqrt(np.outer(row, column) / row.mean())
        update /= max(1.0, np.sqrt((update**2).mean()))
        expected = expected - 0.01 * max(1e-3, np.sqrt((expected**2).mean())) * update
    np.testing.assert_allclose(found["w"], expected, rtol=1e-4, atol=1e-5)
    largest = max(leaf.size for leaf in jax.tree.leaves(state))
    assert largest <= 200, "the second moment of a matrix is held as two vectors"


def test_decay_reaches_matrices_only():
    params, _ = trees()
    still = jax.tree.map(jnp.zeros_like, params)
    after, _ = run(optim.AdamW(optim.Constant(0.1), decay=0.5).build(AXES, 1), params, [still])
    np.testing.assert_allclose(after["table"], 0.95 * params["table"], rtol=1e-6)
    np.testing.assert_allclose(
        after["stack"]["kernel"], 0.95 * params["stack"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(after["stack"]["scale"], params["stack"]["scale"])
    np.testing.assert_array_equal(after["bias"], params["bias"])


def test_muon_updates_are_orthogonal():
    params, gradients = trees()
    optimizer = optim.Muon(optim.Constant(1.0), clip=0.0)
    tx = optimizer.build(AXES, 1)
    update, _ = tx.update(gradients[0], tx.init(params), params)
    for layer in np.asarray(update["stack"]["kernel"]):
        singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(160))
        assert 0.6 < singular.min() and singular.max() < 1.3


def test_average_is_exponential():
    params, gradients = trees()
    tx = optim.AdamW(optim.Constant(0.1), ema=0.75).build(AXES, 2)
    state, expected = tx.init(params), params
    for gradient in gradients[:2]:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, params)
    mean = optim.averaged(state, None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mean, expected
    )


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (optim.Constant(2.0, warmup=4), {0: 0.5, 3: 2.0, 99: 2.0}),
        (optim.Linear(1.0, warmup=10), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        (optim.Cosine(1.0, warmup=0, end=0.1), {0: 1.0, 50: 0.55, 100: 0.1}),
        (optim.InverseSquareRoot(warmup=10_000), {0: 0.01, 10_000: 0.01, 40_000: 0.005}),
        (optim.InverseSquareRoot(warmup=100, ramp=True), {0: 0.001, 99: 0.1, 400: 0.05}),
        (
            optim.WarmupStableDecay(1.0, warmup=10, decay=20),
            {9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 100: 0.0},
        ),
    ],
)
def test_schedules_at_their_corners(schedule, points):
    rate = schedule.build(100)
    for step, expected in points.items():
        np.testing.assert_allclose(float(rate(jnp.int32(step))), expected, rtol=1e-5, atol=1e-9)


def test_ema_outside_its_range_is_refused():
    with pytest.raises(optim.ConfigError, match=r"optimizer.ema=1.5"):
        optim.AdamW(optim.Constant(1.0), ema=1.5).build(AXES, 1)
