"""XLNet: equal to the published model, and all that the design claims of a model."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm import named, sharding, step
from flaxlm.batch import FEATURES
from flaxlm.convert import table
from flaxlm.convert import xlnet as converter
from flaxlm.errors import ConfigError, DataError
from flaxlm.losses import cross_entropy
from flaxlm.models import xlnet
from flaxlm.models.bert import gelu_erf
from flaxlm.nn.compute import Compute
from flaxlm.objectives.permutation_lm import PermutationLM
from flaxlm.plan import make_plan
from tests.tiny import EXPERIMENT

PARITY = Path(__file__).parent / "parity"
TINY = xlnet.SIZES["tiny"]
MEMORY = xlnet.Size(2, 32, 48, 4, head_dim=8, vocab=256, memory=8, reuse=8, dropout=0.2)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = load(PARITY / "xlnet_cases.py")
MODELS = {"one": xlnet.Model, "two": xlnet.TwoStreamModel}


def make_batch(size=TINY, rows=2, length=12, slots=4, seed=0):
    numbers = dataclasses.asdict(size)
    batch = CASES.inputs(numbers, (rows, length, slots), seed=seed)
    batch["segments"][:] = 1
    batch["reach"] = np.maximum(batch["reach"], 0)  # somebody is seen by all, as in any real row
    return batch if size.memory else {k: v for k, v in batch.items() if k != "memory"}


def init(model, batch):
    boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
    return named.unbox(boxed), named.axes_of(boxed)


def forward(model, params, batch):
    """Outputs without dropout, the logits computed."""

    def apply(params, batch):
        out = model.apply({"params": params}, batch, train=False)
        return out | {"logits": out["logits"].logits()}

    return jax.tree.map(np.asarray, jax.jit(apply)(params, batch))


def check_parity(size, tensors, batch, expected, **options):
    """Both models against transformers' outputs; both directions of the converter."""
    options["compute"] = Compute(scan=False)
    for name, kind in MODELS.items():
        own = size if name == "two" else dataclasses.replace(size, memory=0, reuse=0)
        model = kind(own, **options)
        params = table.read(converter.table(model), tensors, aliases=converter.ALIASES)
        back = table.write(converter.table(model), params)
        assert back.keys() == tensors.keys()
        assert all(np.array_equal(back[key], tensors[key]) for key in tensors)
        out = forward(model, params, batch)
        assert (out["logits"][..., own.vocab :] < -1e29).all()
        for output in ("logits", "hidden", "memory"):
            key = f"{name}/{output}"
            if key not in expected:
                assert output not in out
                continue
            found = out[output][..., : expected[key].shape[-1]]
            where = slice(None) if name == "two" else batch["segments"] > 0
            np.testing.assert_allclose(found[where], expected[key][where], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES.SIZES)
def test_equals_the_published_model(case):
    data = np.load(PARITY / f"xlnet_{case}.npz")
    batch = {k.removeprefix("input/"): data[k] for k in data.files if k.startswith("input/")}
    shapes = {k.removeprefix("shape/"): data[k] for k in data.files if k.startswith("shape/")}
    tensors = {name: CASES.tensor(name, tuple(shape)) for name, shape in shapes.items()}
    check_parity(xlnet.Size(**CASES.SIZES[case]), tensors, batch, data)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_equals_transformers_as_installed(activation):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    sys.path.insert(0, str(PARITY))
    try:
        make = load(PARITY / "make_xlnet.py")
    finally:
        sys.path.remove(str(PARITY))
    size = dict(depth=2, width=30, mlp=22, heads=5, head_dim=6, vocab=99, memory=7, reuse=3)
    theirs = make.build(size, activation)
    batch = CASES.inputs(size, (3, 21, 6), seed=5)
    ours = converter.model_of(theirs.config.to_dict())
    assert ours.size == dataclasses.replace(xlnet.Size(**size), memory=0, reuse=0)
    again = converter.config_of(ours.clone(size=xlnet.Size(**size)))
    assert type(theirs.config)(**again).to_diff_dict() == theirs.config.to_diff_dict() | {
        "architectures": ["XLNetLMHeadModel"]
    }
    expected = make.outputs(theirs, batch)
    check_parity(
        xlnet.Size(**size), make.weights(theirs), batch, expected, activation=ours.activation
    )


CONFIG = {"model_type": "xlnet", "d_model": 32, "n_head": 4}


@pytest.mark.parametrize(
    "other",
    [
        {"attn_type": "uni"},
        {"bi_data": True},
        {"clamp_len": 12},
        {"same_length": True},
        {"untie_r": False},
        {"ff_activation": "relu"},
        {"tie_word_embeddings": False},
    ],
)
def test_conversion_refuses_what_the_model_does_not_have(other):
    assert converter.model_of(CONFIG).activation is gelu_erf
    with pytest.raises(ConfigError, match=next(iter(other))):
        converter.model_of(CONFIG | other)


def test_conversion_refuses_shapes_that_do_not_fit():
    model = xlnet.Model(TINY)
    params, _ = init(model, make_batch())
    tensors = table.write(converter.table(model), params)
    name = "transformer.layer.1.rel_attn.o"
    assert tensors[name].shape == (64, 4, 16)
    with pytest.raises(DataError, match=r"o' has shape \[64, 64\].*\[64, 4, 16\]"):
        table.read(converter.table(model), tensors | {name: tensors[name].reshape(64, 64)})
    with pytest.raises(ConfigError, match="transformers asks for it"):
        converter.table(xlnet.Model(dataclasses.replace(TINY, heads=2)))


@pytest.mark.parametrize("name", xlnet.PARAMETERS)
def test_published_parameter_counts(name):
    """With the readout's bias, the only parameter of the language model's head, and without."""
    for model in (xlnet.Model(xlnet.SIZES[name]), xlnet.TwoStreamModel(xlnet.SIZES[name])):
        params = jax.eval_shape(
            lambda model=model: model.init(jax.random.key(0), make_batch(), train=False)["params"]
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count == xlnet.PARAMETERS[name]
        bias = jax.tree.leaves(params["bias"])[0].size
        assert count - bias == {"base": 116_718_336, "large": 360_268_800}[name]


@pytest.fixture(scope="module")
def tiny():
    params, axes = init(xlnet.TwoStreamModel(TINY), make_batch())
    # Random values everywhere: vectors that begin near zero would hide what they do.
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    leaves = [leaf + 0.2 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, leaves), axes


def test_outputs(tiny):
    batch = make_batch()
    for name, positions in (("one", 12), ("two", 4)):
        out = forward(MODELS[name](TINY), tiny[0], batch)
        assert out.keys() == {"logits", "hidden"}
        assert out["logits"].shape == (2, positions, 512)
        assert out["hidden"].shape == (2, 12, 64)
        assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in out.values())


def test_bfloat16_computes_on_float32_parameters(tiny):
    size = dataclasses.replace(TINY, memory=6)
    batch = make_batch(size)
    model = xlnet.TwoStreamModel(size, Compute(dtype="bfloat16"))
    params, _ = init(model, batch)
    out = model.apply({"params": params}, batch, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert out["hidden"].dtype == jnp.bfloat16
    assert out["memory"].dtype == out["logits"].logits().dtype == jnp.float32
    exact = forward(xlnet.TwoStreamModel(size), params, batch)
    np.testing.assert_allclose(out["logits"].logits(), exact["logits"], atol=0.15)


def moved(model, params, batch, changed):
    before, after = forward(model, params, batch), forward(model, params, changed)
    return {k: np.abs(before[k] - after[k]).max(axis=-1) > 1e-5 for k in ("logits", "hidden")}


def test_a_slot_sees_what_it_may_and_nothing_else(tiny):
    """One layer: what moves is exactly what may see the changed token."""
    size = dataclasses.replace(TINY, depth=1)
    params = tiny[0] | {"layers": jax.tree.map(lambda x: x[:1], tiny[0]["layers"])}
    batch = make_batch(size, rows=3, length=15, slots=15, seed=3)
    for place in range(0, 15, 4):
        changed = batch | {"tokens": batch["tokens"].copy()}
        changed["tokens"][:, place] = (changed["tokens"][:, place] + 1) % size.vocab
        found = moved(xlnet.TwoStreamModel(size), params, batch, changed)
        sees = batch["reach"] > batch["order"][:, place, None]
        at_slots = np.take_along_axis(sees, batch["slots"], axis=1)
        assert np.array_equal(found["logits"], at_slots)
        sees[:, place] = True  # the content stream sees itself
        assert np.array_equal(found["hidden"], sees)


def test_nothing_is_seen_through_other_positions(tiny):
    """Two layers: a slot that may not see a token does not learn of it by way of a third either,
    because whoever it sees comes earlier in the order.
    """
    batch = make_batch(rows=3, length=15, slots=15, seed=4)
    batch["reach"][:] = np.where(batch["order"] < 0, 0, batch["order"])
    place = 7
    changed = batch | {"tokens": batch["tokens"].copy()}
    changed["tokens"][:, place] = (changed["tokens"][:, place] + 1) % TINY.vocab
    found = moved(xlnet.TwoStreamModel(TINY), tiny[0], batch, changed)["logits"]
    sees = batch["reach"] > batch["order"][:, place, None]
    at_slots = np.take_along_axis(sees, batch["slots"], axis=1)
    assert not (found & ~at_slots).any()
    assert found.any()


def test_one_stream_sees_its_segment_and_padding_changes_nothing(tiny):
    batch = make_batch(length=9)
    expected = forward(xlnet.Model(TINY), tiny[0], batch)
    long = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in batch.items() if k != "slots"}
    long["tokens"][:, 9:] = 3
    found = forward(xlnet.Model(TINY), tiny[0], long)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name][:, :9], array, atol=5e-5)
    changed = batch | {"tokens": batch["tokens"].copy()}
    changed["tokens"][:, 8] += 1
    assert moved(xlnet.Model(TINY), tiny[0], batch, changed)["hidden"].all()


def test_sizes_that_cannot_be():
    for numbers, message in (
        ({"width": 33}, "width=33: must be even"),
        ({"memory": -1}, "memory=-1: must be at least 0"),
        ({"heads": 0}, "heads=0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: a rate is in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(TINY, **numbers)


# Memory through the train step.


class Plain(PermutationLM):
    """Without dropout, and without anything made on the host."""

    def forward(self, apply, batch, rng):
        return super().forward(apply, batch, None)


def step_batch(rows, length, slots, seed):
    batch = make_batch(dataclasses.replace(MEMORY, memory=0), rows, length, slots, seed)
    weights = np.ones(batch["slots"].shape, np.float32)
    targets = np.take_along_axis(batch["tokens"], batch["slots"], axis=1)
    return batch | {"slot_targets": targets, "slot_weights": weights}


@pytest.fixture(scope="module")
def stepping():
    """(model, its state before the first step, a function that makes a jitted step)."""
    model, batch = xlnet.TwoStreamModel(MEMORY), step_batch(4, 8, 3, 0)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    tx = optax.sgd(0.0)  # the parameters stay: two steps are one computation cut in two
    state = jax.jit(step.make_init(model, tx, shapes, seed=0))()
    make = lambda **options: jax.jit(step.make_train_step(model, Plain(), tx, seed=0, **options))
    return model, state, make


class Long(xlnet.TwoStreamModel):
    """Over two segments at once: the second half does not see the memory before the first."""

    def view(self, batch, mask, places=None):
        view = super().view(batch, mask, places)
        every = jnp.broadcast_to(jnp.arange(16)[None], batch["tokens"].shape)
        first = (every if places is None else places) < 8
        own = jnp.arange(24) >= self.size.memory
        mask = view.mask & (first[:, None, :, None] | own[None, None, None])
        return view.replace(mask=mask)


def test_two_steps_with_memory_are_one_long_computation(stepping):
    _, state, make = stepping
    assert state.carry["memory"].shape == (4, 2, 8, 32)
    first, second = step_batch(4, 8, 3, 1), step_batch(4, 8, 3, 2)
    first["types"][:] = 0  # what a memory counts as
    zeros = np.asarray(state.carry["memory"])
    one, metrics_one = make()(state, first)
    two, metrics_two = make()(one, second)

    names = ("tokens", "segments", "types", "order", "reach", "slots")
    whole = {name: np.concatenate([first[name], second[name]], axis=1) for name in names}
    for name in ("order", "reach"):
        whole[name][:, 8:] += 100
    whole["slots"][:, 3:] += 8
    long = Long(dataclasses.replace(MEMORY, reuse=0))
    out = jax.jit(lambda params, batch: long.apply({"params": params}, batch, train=False))(
        state.params, whole | {"memory": zeros}
    )
    targets = np.concatenate([first["slot_targets"], second["slot_targets"]], axis=1)
    nll = np.asarray(cross_entropy(out["logits"], targets)[0])
    np.testing.assert_allclose(metrics_one["plm"], nll[:, :3].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics_two["plm"], nll[:, 3:].mean(), rtol=1e-5)
    np.testing.assert_allclose(two.carry["memory"], out["memory"], atol=2e-6)
    # The embeddings, the input of the first layer, are what one can say without a model.
    table = np.asarray(state.params["embed"]["table"])
    np.testing.assert_array_equal(two.carry["memory"][:, 0], table[second["tokens"]])
    assert np.abs(two.carry["memory"][:, 1] - one.carry["memory"][:, 1]).max() > 0.01


def test_accumulation_carries_the_same_memory(stepping):
    _, state, make = stepping
    first, second = step_batch(4, 8, 3, 1), step_batch(4, 8, 3, 2)
    found = []
    for accumulate in (1, 2):
        update = make(accumulate=accumulate)
        found.append(update(update(state, first)[0], second))
    (one, seen_one), (two, seen_two) = found
    np.testing.assert_allclose(one.carry["memory"], two.carry["memory"], atol=2e-6)
    for name in seen_one.keys() - {"evidence"}:
        np.testing.assert_allclose(seen_one[name], seen_two[name], rtol=2e-5)


def test_evaluation_begins_without_a_past(stepping):
    model, state, make = stepping
    batch = step_batch(4, 8, 3, 1)
    later, _ = make()(state, batch)
    evaluate = jax.jit(step.make_eval_step(model, Plain()))
    assert evaluate(state, batch)["plm"][0] == evaluate(later, batch)["plm"][0]


def test_memory_keeps_the_last_of_what_is_reused():
    size = dataclasses.replace(MEMORY, memory=8, reuse=3, dropout=0.0)
    model, batch = xlnet.Model(size), make_batch(size, length=10)
    params, _ = init(model, batch)
    found = forward(model, params, batch)["memory"]
    np.testing.assert_array_equal(found[:, :, :5], batch["memory"][:, :, 3:])
    table = np.asarray(params["embed"]["table"])
    np.testing.assert_array_equal(found[:, 0, 5:], table[batch["tokens"][:, :3]])


# How it is computed.


def loss_and_gradient(model, targets):
    def loss(params, batch):
        out = model.apply(
            {"params": params}, batch, train=True, rngs={"dropout": jax.random.key(3)}
        )
        return cross_entropy(out["logits"], targets)[0].mean()

    return jax.value_and_grad(loss)


@pytest.fixture(scope="module")
def trained():
    batch = make_batch(MEMORY, rows=8, length=8, slots=4)
    model = xlnet.TwoStreamModel(MEMORY)
    params, axes = init(model, batch)
    step = loss_and_gradient(model, batch["slots"])
    return batch, params, axes, jax.jit(step)(params, batch)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "compute",
    [Compute(scan=False), Compute(remat="full"), Compute(remat="qkv")],
    ids=lambda c: f"scan={c.scan},remat={c.remat}",
)
def test_how_it_is_computed_changes_nothing(trained, compute):
    batch, params, _, expected = trained
    step = loss_and_gradient(xlnet.TwoStreamModel(MEMORY, compute), batch["slots"])
    assert_same(jax.jit(step)(params, batch), expected)


def test_every_parameter_learns(trained):
    _, _, _, (_, gradient) = trained
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, named.path_name(path)


def test_sharded_as_declared(trained, capfd):
    batch, params, axes, expected = trained
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, tensor=4))
    with sharding.using(layout):
        placed = {k: layout.sharding(FEATURES[k].axes) for k in batch}
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, _: layout.sharding(axes[named.path_name(path)]), params
        )
        step = jax.jit(
            loss_and_gradient(xlnet.TwoStreamModel(MEMORY), batch["slots"]),
            in_shardings=(shardings, placed),
            out_shardings=(None, shardings),
        )
        found = step(jax.device_put(params, shardings), jax.device_put(batch, placed))
    assert_same(found, expected)
    attention = found[1]["layers"]["attention"]
    assert attention["query"]["kernel"].addressable_shards[0].data.shape == (2, 16, 8)
    assert attention["types"].addressable_shards[0].data.shape == (2, 2, 8)
    assert "rematerialization" not in capfd.readouterr().err


def test_flops_are_those_of_the_compiled_products(trained):
    batch, params, _, _ = trained
    model = xlnet.TwoStreamModel(MEMORY, Compute(scan=False))

    def apply(params, batch):
        out = model.apply({"params": params}, batch, train=False)
        return out["logits"].logits(), out["hidden"]

    counted = jax.jit(apply).lower(params, batch).cost_analysis()["flops"]
    assert model.flops({k: v.shape for k, v in batch.items()}) == pytest.approx(counted, rel=0.25)


def test_memory_needs_rows_that_go_on():
    experiment = dataclasses.replace(
        EXPERIMENT,
        model=xlnet.TwoStreamModel(dataclasses.replace(MEMORY, vocab=500, reuse=0)),
        objective=PermutationLM(predicted=6, reuse=0, pairs=False),
    )
    layout = sharding.abstract_layout(sharding.Mesh(data=1), 1)
    vocab = experiment.data.vocabulary.blank()
    with pytest.raises(ConfigError, match=r"packing=stream: flaxlm\.models\.xlnet .* continue"):
        make_plan(experiment, layout, vocab)
    goes_on = dataclasses.replace(experiment.data, packing="continue")
    plan = make_plan(dataclasses.replace(experiment, data=goes_on), layout, vocab)
    assert plan.state.carry["memory"].shape == (16, 2, 8, 32)
    other = dataclasses.replace(experiment, model=xlnet.TwoStreamModel(MEMORY), data=goes_on)
    with pytest.raises(ConfigError, match=r"^model\.size\.reuse=8 but objective\.reuse=0"):
        make_plan(other, layout, vocab)
