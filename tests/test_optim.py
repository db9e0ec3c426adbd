"""Optimizers: per-layer statistics, decay masks, schedules at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm import losses, moments, optim
from flaxlm.models import gpt2
from tests import gpts

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
        (
            optim.Cosine(1.0, warmup=20, end=0.1, steps=60),
            {19: 1.0, 20: 1.0, 40: 0.55, 60: 0.1, 99: 0.1},
        ),
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


# Each optimizer and schedule against the published formula, written out over single arrays.


def bert_adam(weight, gradients, rate, *, decay, b1=0.9, b2=0.999, eps=1e-6):
    """bert/optimization.py: no bias correction, eps outside the root, decay times the rate."""
    m = v = np.zeros_like(weight)
    for step, gradient in enumerate(gradients):
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        weight = weight - rate(step) * (m / (np.sqrt(v) + eps) + decay * weight)
    return weight


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_adam_without_debias_is_berts():
    params, gradients = trees()
    optimizer = optim.AdamW(
        optim.LinearFromStart(0.1, warmup=2), clip=0.0, decay=0.01, eps=1e-6, debias=False
    )
    found, _ = run(optimizer.build(AXES, 3), params, gradients)
    rate = lambda step: 0.1 * step / 2 if step < 2 else 0.1 * (1 - step / 3)
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
        expected = bert_adam(
            np.asarray(params["stack"][name], np.float64),
            [np.asarray(g["stack"][name], np.float64) for g in gradients],
            rate,
            decay=decay,
        )
        np.testing.assert_allclose(found["stack"][name], expected, rtol=1e-5, atol=1e-6)


def test_adam_with_debias_is_fairseqs():
    """fairseq/optim/adam.py with decay on everything. It adds eps to the root before the
    correction, we after it, as torch: the same once 1 - b2^t is near 1, or with a small eps.
    """
    params, gradients = trees()
    optimizer = optim.AdamW(
        optim.Constant(0.1), clip=0.0, b2=0.98, eps=1e-12, decay=0.01, decay_on="all"
    )
    found, _ = run(optimizer.build(AXES, 3), params, gradients)

    def adam(weight, *gradients):
        m = v = np.zeros_like(weight)
        for t, gradient in enumerate(gradients, start=1):
            m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
            size = 0.1 * np.sqrt(1 - 0.98**t) / (1 - 0.9**t)
            weight = weight - 0.1 * 0.01 * weight
            weight = weight - size * m / (np.sqrt(v) + 1e-12)
        return weight

    expected = jax.tree.map(adam, float64(params), *map(float64, gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("debias", [False, True])
def test_lamb_is_the_published_one(debias):
    """albert/lamb_optimizer.py, without bias correction; You et al. 2020 (algorithm 2) with it."""
    params, gradients = trees()
    params["stack"]["kernel"] = params["stack"]["kernel"].at[1].set(0)  # a norm of 0: ratio 1
    optimizer = optim.Lamb(optim.Constant(0.1), clip=0.0, decay=0.01, debias=debias)
    found, _ = run(optimizer.build(AXES, 3), params, gradients)

    def lamb(weight, gradients, matrix):
        m = v = np.zeros_like(weight)
        for t, gradient in enumerate(gradients, start=1):
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            first, second = (1 - 0.9**t, 1 - 0.999**t) if debias else (1, 1)
            update = (m / first) / (np.sqrt(v / second) + 1e-6) + 0.01 * matrix * weight
            norm, step = np.sqrt((weight**2).sum()), np.sqrt((update**2).sum())
            ratio = norm / step if matrix and norm > 0 and step > 0 else 1.0
            weight = weight - 0.1 * ratio * update
        return weight

    for path in (("stack", "kernel"), ("stack", "scale"), ("table",), ("bias",)):
        pick = lambda tree, path=path: np.asarray(
            tree[path[0]] if len(path) == 1 else tree[path[0]][path[1]], np.float64
        )
        weight, grads = pick(params), [pick(gradient) for gradient in gradients]
        matrix = path in (("stack", "kernel"), ("table",))
        if path[0] == "stack":
            expected = np.stack([lamb(weight[i], [g[i] for g in grads], matrix) for i in range(3)])
        else:
            expected = lamb(weight, grads, matrix)
        np.testing.assert_allclose(pick(found), expected, rtol=1e-4, atol=1e-5)


def test_clip_each_clips_every_parameter_of_every_layer():
    params, gradients = trees()
    gradients[0]["stack"]["scale"] = gradients[0]["stack"]["scale"].at[1].multiply(1e-3)
    tx = optim.AdamW(optim.Constant(1.0), clip=0.0, clip_each=1.0, b1=0.0, b2=0.0, eps=1e6)
    update, _ = tx.build(AXES, 1).update(gradients[0], tx.build(AXES, 1).init(params), params)

    def clipped(gradient):  # as torch.nn.utils.clip_grad_norm_ of one tensor
        return gradient * min(1.0, 1.0 / (np.sqrt((gradient**2).sum()) + 1e-6))

    for name, layered in (("kernel", True), ("scale", True), ("table", False), ("bias", False)):
        source = gradients[0]["stack"] if layered else gradients[0]
        target = update["stack"] if layered else update
        gradient, found = np.asarray(source[name], np.float64), np.asarray(target[name])
        parts = zip(gradient, found, strict=True) if layered else [(gradient, found)]
        for given, got in parts:  # a vast eps leaves the clipped gradient over 1e6
            np.testing.assert_allclose(got * -1e6, clipped(given), rtol=1e-4, atol=1e-6)


def test_clipping_each_comes_after_clipping_all():
    gradient = {"w": jnp.full((4, 4), 10.0)}  # norm 40
    tx = optim.AdamW(optim.Constant(1.0), clip=0.5, clip_each=1.0, b1=0.0, b2=0.0, eps=1e6)
    tx = tx.build({"w": ("embed", "mlp")}, 1)
    update, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(np.linalg.norm(update["w"]) * 1e6, 0.5, rtol=1e-4)


def test_decay_on_all_reaches_everything():
    params, _ = trees()
    still = jax.tree.map(jnp.zeros_like, params)
    optimizer = optim.AdamW(optim.Constant(0.1), decay=0.5, decay_on="all")
    after, _ = run(optimizer.build(AXES, 1), params, [still])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95 * b, rtol=1e-6), after, params)


def test_small_tables_are_decayed_as_matrices():
    axes = {"positions": ("positions", "embed"), "types": ("types", "embed")}
    params = {name: jnp.ones((4, 8)) for name in axes}
    tx = optim.AdamW(optim.Constant(0.1), decay=0.5).build(axes, 1)
    after, _ = run(tx, params, [jax.tree.map(jnp.zeros_like, params)])
    assert all(np.allclose(leaf, 0.95) for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("multiplied", [False, True])
def test_linear_from_start_is_the_published_program(multiplied):
    """bert/optimization.py and, multiplied, electra/model/optimization.py: polynomial_decay of
    power 1 over all steps, then the warmup.
    """
    steps, warmup, peak, end = 50, 10, 3e-4, 1e-5
    rate = optim.LinearFromStart(peak, warmup, end, multiplied).build(steps)
    for step in range(60):
        decay = (peak - end) * (1 - min(step, steps) / steps) + end
        if multiplied:
            expected = decay * min(1.0, step / warmup)
        else:
            expected = peak * step / warmup if step < warmup else decay
        np.testing.assert_allclose(float(rate(jnp.int32(step))), expected, rtol=1e-5, atol=1e-12)
    assert float(rate(0)) == 0.0


def test_a_schedule_without_warmup_starts_at_its_peak():
    for schedule in (optim.Linear(1.0), optim.LinearFromStart(1.0), optim.Cosine(1.0)):
        assert float(schedule.build(10)(jnp.int32(0))) == 1.0


def test_the_three_linear_schedules_differ_where_they_should():
    """After 10 of 100 steps of warmup: BERT drops, ELECTRA peaks below its peak, XLNet does not."""
    at = lambda schedule, step: float(schedule.build(100)(jnp.int32(step)))
    bert, xlnet = optim.LinearFromStart(1.0, 10), optim.Linear(1.0, 10)
    electra = optim.LinearFromStart(1.0, 10, multiplied=True)
    np.testing.assert_allclose([at(bert, 9), at(bert, 10), at(bert, 55)], [0.9, 0.9, 0.45])
    np.testing.assert_allclose([at(electra, 5), at(electra, 10)], [0.475, 0.9], rtol=1e-6)
    np.testing.assert_allclose([at(xlnet, 9), at(xlnet, 10), at(xlnet, 55)], [1, 1, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.AdamW(optim.Constant(1.0), decay_on="matrix"),
            "decay_on='matrix'.*matrices",
        ),
        (lambda: optim.AdamW(optim.Constant(1.0), b1=1.0), "optimizer.b1=1.0"),
        (lambda: optim.AdamW(optim.Constant(1.0), eps=0.0), "optimizer.eps=0.0"),
        (lambda: optim.AdamW(optim.Constant(1.0), clip=-1.0), "optimizer.clip=-1.0"),
        (lambda: optim.Lamb(optim.Constant(1.0), clip_each=-1.0), "optimizer.clip_each=-1.0"),
        (lambda: optim.Lamb(optim.Constant(1.0), decay=float("nan")), "optimizer.decay=nan"),
        (lambda: optim.Muon(optim.Constant(1.0), momentum=2.0), "optimizer.momentum=2.0"),
        (lambda: optim.Constant(0.0), "schedule.peak=0.0: must be above 0"),
        (lambda: optim.Linear(1.0, warmup=-1), "schedule.warmup=-1"),
        (lambda: optim.LinearFromStart(1.0, end=-1.0), "schedule.end=-1.0"),
        (lambda: optim.Cosine(1.0, warmup=10, steps=10), "schedule.steps=10.*after the warmup"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(optim.ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# Moments in bfloat16.


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Lamb, optim.Muon])
def test_moments_in_half_the_bytes(kind):
    params, gradients = trees()

    def moments_of(**types):
        tx = kind(optim.Constant(0.01), **types).build(AXES, 3)
        found, state = run(tx, params, gradients)
        wide = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert [x.dtype for x in jax.tree.leaves(tx.init(params))] == [
            x.dtype for x in jax.tree.leaves(state)
        ], "a step keeps the types"
        return found, sum(leaf.nbytes for leaf in wide if leaf.size > 100)  # no counters

    exact, whole = moments_of()
    near, half = moments_of(first_moment="bfloat16", second_moment="bfloat16")
    assert half == whole / 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.003), near, exact)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(near))


def test_a_second_moment_is_rounded_at_random_or_it_never_falls():
    """Gradients of 1, then of 0.1: 2,000 steps later the second moment has forgotten the first
    ones. Rounded to the nearest bfloat16 it stays where it was.
    """
    first, later, b2, shape = jnp.ones((256,)), jnp.full((256,), 0.1), 0.999, (256,)
    tx = moments.kept(moments.adam(0.9, b2, 1e-8), first="float32", second="bfloat16")
    state = tx.init(jnp.zeros(shape))
    state = state._replace(nu=first.astype(jnp.bfloat16))
    nearest = first.astype(jnp.bfloat16)

    def step(_, both):
        state, nearest = both
        _, state = tx.update(later, state, None)
        nearest = b2 * nearest.astype(jnp.float32) + (1 - b2) * later**2
        return state, nearest.astype(jnp.bfloat16)

    state, nearest = jax.lax.fori_loop(0, 2000, step, (state, nearest))
    exact = 0.01 + 0.99 * b2**2000
    assert nearest.astype(jnp.float32).min() == 1.0
    assert state.nu.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.nu.astype(jnp.float32).mean(), exact, rtol=0.03)


def test_rounding_at_random_is_fair():
    x = jnp.full((20_000,), 1 + 1 / 512, jnp.float32)  # a quarter of the way to the next
    drawn = moments.round_at_random(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(drawn)) == {1.0, 1 + 1 / 128}
    np.testing.assert_allclose(drawn.mean(), 1 + 1 / 512, atol=1e-4)
    exact = jnp.array([0.0, 1.5, -2.0, 1e-30])
    found = moments.round_at_random(exact, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_allclose(found, exact, rtol=1 / 128)


def test_a_small_model_learns_as_well_with_narrow_moments():
    """50 steps of GPT-2 tiny on the same rows."""
    model = gpt2.Model(gpt2.SIZES["tiny"])
    batch = gpts.make_batch(rows=4, length=32)
    params, axes = gpts.init(model, batch)

    def loss(params):
        readout = model.apply({"params": params}, batch, train=False)["logits"]
        return losses.cross_entropy(readout, batch["tokens"])[0].mean()

    def train(**types):
        tx = optim.AdamW(optim.Constant(3e-3), b2=0.95, **types).build(axes, 50)

        def step(both, _):
            params, state = both
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), length=50)[1])()

    wide, narrow = train(), train(first_moment="bfloat16", second_moment="bfloat16")
    assert wide[-1] < 0.2 * wide[0]
    np.testing.assert_allclose(narrow, wide, atol=0.02 * float(wide[0]))


def test_an_unknown_type_of_moments_is_refused():
    with pytest.raises(optim.ConfigError, match=r"optimizer\.second_moment='bf16'.*bfloat16"):
        optim.AdamW(optim.Constant(1.0), second_moment="bf16")
