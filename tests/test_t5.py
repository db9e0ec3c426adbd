"""T5: equal to the published model, and all that the design claims of a model."""

import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named, sharding
from flaxlm.convert import t5 as convert
from flaxlm.convert import table
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.losses import cross_entropy
from flaxlm.models import t5
from flaxlm.nn.compute import Compute
from flaxlm.nn.positions import buckets

PARITY = Path(__file__).parent / "parity"
TINY = t5.SIZES["tiny"]
DROPOUT = t5.Size(2, 32, 48, 4, head_dim=8, vocab=256, dropout=0.2)
MODELS = [t5.Model, t5.ModelV10, t5.LanguageModel, t5.PrefixLanguageModel]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(rows=2, length=12, decoder_length=7, vocab=TINY.vocab, seed=0):
    rng = np.random.default_rng(seed)
    batch = {}
    for prefix, width in (("", length), ("decoder_", decoder_length)):
        batch[prefix + "tokens"] = rng.integers(0, vocab, (rows, width)).astype(np.int32)
        batch[prefix + "segments"] = np.ones((rows, width), np.int32)
    batch["prefix"] = np.tile((np.arange(length) < 5).astype(np.int32), (rows, 1))
    return batch


def init(model, batch):
    boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
    return named.unbox(boxed), named.axes_of(boxed)


def forward(model, params, batch):
    """Outputs without dropout, the logits computed."""

    def apply(params, batch):
        out = model.apply({"params": params}, batch, train=False)
        return out | {"logits": out["logits"].logits()}

    return jax.tree.map(np.asarray, jax.jit(apply)(params, batch))


@pytest.fixture(scope="module")
def tiny():
    """Per model class: model, parameters, and its jitted forward pass."""
    made = {}

    def get(family):
        if family not in made:
            model = family(TINY)
            params, _ = init(model, make_batch())
            made[family] = model, params
        return made[family]

    return get


def from_hf(tensors, model):
    return table.read(
        convert.table(model), tensors, ignored=convert.IGNORED, aliases=convert.ALIASES
    )


def to_hf(params, model):
    return table.write(convert.table(model), params)


CASES = load(PARITY / "t5_cases.py")
VERSIONS = {"v1_0": t5.ModelV10, "v1_1": t5.Model}


def real(batch, output):
    """[B, L] bool: the positions of an output that are not padding."""
    return batch["segments" if output == "encoder" else "decoder_segments"] > 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES.SIZES)
def test_equals_the_published_model(case, version):
    size = t5.Size(**CASES.SIZES[case])
    data = np.load(PARITY / f"t5_{case}.npz")
    batch = {k.removeprefix("input/"): data[k] for k in data.files if k.startswith("input/")}
    start = f"{version}/shape/"
    tensors = {
        k.removeprefix(start): CASES.tensor(k.removeprefix(start), tuple(data[k]))
        for k in data.files
        if k.startswith(start)
    }
    model = VERSIONS[version](size)
    params = from_hf(tensors, model)
    back = to_hf(params, model)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)

    assert convert.model_of(convert.config_of(model)) == model
    out = forward(model, params, batch)
    assert (out["logits"][..., size.vocab :] < -1e29).all()
    for name in ("logits", "hidden", "encoder"):
        expected = data[f"{version}/{name}"]  # every 7th position
        found = out[name][:, ::7, : expected.shape[-1]]
        where = real(batch, name)[:, ::7]
        np.testing.assert_allclose(found[where], expected[where], atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_equals_transformers_as_installed(version):
    torch = pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    import sys

    sys.path.insert(0, str(PARITY))
    try:
        make = load(PARITY / "make_t5.py")
    finally:
        sys.path.remove(str(PARITY))
    size = dict(depth=2, width=30, mlp=22, heads=7, head_dim=3, vocab=99, decoder_depth=3)
    theirs = make.build(size, v1_1=version == "v1_1")
    distance = np.arange(-300, 301)
    for stack, two_sided in ((theirs.encoder, True), (theirs.decoder, False)):
        bucket = stack.block[0].layer[0].SelfAttention._relative_position_bucket
        for count, furthest in ((32, 128), (14, 30), (64, 200)):
            expected = bucket(torch.from_numpy(distance), two_sided, count, furthest).numpy()
            found = buckets(distance, count=count, max_distance=furthest, two_sided=two_sided)
            np.testing.assert_array_equal(found, expected)
    batch = CASES.inputs(size, (3, 40, 21), seed=5)
    expected = make.outputs(theirs, batch)
    model = VERSIONS[version](t5.Size(**size))
    out = forward(model, from_hf(make.weights(theirs), model), batch)
    for name in ("logits", "hidden", "encoder"):
        where = real(batch, name)
        found = out[name][..., : expected[name].shape[-1]]
        np.testing.assert_allclose(found[where], expected[name][where], atol=1e-4, rtol=0)


def test_conversion_refuses_what_does_not_fit():
    model = t5.Model(t5.Size(**CASES.SIZES["a"]))
    params, _ = init(model, make_batch(vocab=model.size.vocab))
    tensors = to_hf(params, model)
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    with pytest.raises(MissingInput, match=re.escape(name)):
        from_hf({k: v for k, v in tensors.items() if k != name}, model)
    with pytest.raises(DataError, match=re.escape(name) + r".*\[20, 15\].*\[15, 20\]"):
        from_hf(tensors | {name: tensors[name].T}, model)
    with pytest.raises(DataError, match="bert"):
        from_hf(tensors | {"bert.pooler.weight": tensors[name]}, model)
    copies = {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    assert from_hf(tensors | copies, model).keys() == params.keys()
    # The readout of v1.0 is the embedding, whether a file repeats it or not.
    old = t5.ModelV10(model.size)
    tensors = to_hf(init(old, make_batch(vocab=model.size.vocab))[0], old)
    repeated = {**tensors, "lm_head.weight": tensors["shared.weight"]}
    assert from_hf(repeated, old).keys() == from_hf(tensors, old).keys()
    with pytest.raises(DataError, match=r"lm_head\.weight.*must be a copy of 'shared\.weight'"):
        from_hf({**tensors, "lm_head.weight": tensors["shared.weight"] + 1}, old)


@pytest.mark.parametrize("family", [t5.LanguageModel, t5.PrefixLanguageModel])
def test_stacks_that_transformers_lacks_are_refused(family):
    with pytest.raises(ConfigError, match=family.__name__):
        convert.config_of(family(TINY))


def test_sizes_are_the_published_ones():
    assert t5.PARAMETERS.keys() == t5.SIZES.keys() - {"tiny"}
    assert len(t5.PARAMETERS) == 10


@pytest.mark.parametrize("name", t5.PARAMETERS)
def test_published_parameter_counts(name):
    model = (t5.Model if name.startswith("v1_1") else t5.ModelV10)(t5.SIZES[name])
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), make_batch(), train=False)["params"]
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == t5.PARAMETERS[name]


@pytest.mark.parametrize("family", MODELS)
def test_outputs(tiny, family):
    model, params = tiny(family)
    out = forward(model, params, make_batch())
    lengths = {"logits": 12, "hidden": 12}
    if issubclass(family, t5.Model):
        lengths = {"logits": 7, "hidden": 7, "encoder": 12}
    assert out.keys() == lengths.keys()
    for name, length in lengths.items():
        assert out[name].shape == (2, length, TINY.vocab if name == "logits" else TINY.width)
        assert out[name].dtype == np.float32
        assert np.isfinite(out[name]).all()


def test_bfloat16_computes_on_float32_parameters(tiny):
    _, params = tiny(t5.Model)
    model = t5.Model(TINY, Compute(dtype="bfloat16"))
    out = model.apply({"params": params}, make_batch(), train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert out["hidden"].dtype == out["encoder"].dtype == jnp.bfloat16
    assert out["logits"].logits().dtype == jnp.float32
    exact = forward(*tiny(t5.Model), make_batch())
    np.testing.assert_allclose(out["logits"].logits(), exact["logits"], atol=0.15)
    assert not np.array_equal(out["hidden"].astype(np.float32), exact["hidden"])


@pytest.mark.parametrize("family", MODELS)
def test_sees_no_future(tiny, family):
    model, params = tiny(family)
    batch = make_batch()
    name = "decoder_tokens" if issubclass(family, t5.Model) else "tokens"
    changed = batch | {name: batch[name].copy()}
    changed[name][:, 6] = (changed[name][:, 6] + 1) % TINY.vocab
    before, after = forward(model, params, batch), forward(model, params, changed)
    assert np.array_equal(before["logits"][:, :6], after["logits"][:, :6])
    assert not np.allclose(before["logits"][:, 6], after["logits"][:, 6], atol=1e-3)


def test_prefix_is_seen_by_all_of_its_segment_only(tiny):
    model, params = tiny(t5.PrefixLanguageModel)
    batch = make_batch()
    batch["segments"][:, 8:] = 2
    batch["prefix"][:, 8:10] = 1
    changed = batch | {"tokens": batch["tokens"].copy()}
    changed["tokens"][:, 4] = (changed["tokens"][:, 4] + 1) % TINY.vocab
    before, after = forward(model, params, batch), forward(model, params, changed)
    moved = np.abs(before["hidden"] - after["hidden"]).max(axis=-1) > 1e-4
    assert moved[:, :8].all()
    assert np.array_equal(before["hidden"][:, 8:], after["hidden"][:, 8:])


def test_padding_changes_nothing(tiny):
    model, params = tiny(t5.Model)
    short = make_batch()
    del short["prefix"]
    long = {k: np.pad(v, ((0, 0), (0, 5)), constant_values=0) for k, v in short.items()}
    long["tokens"][:, 12:] = 3  # what stands on padding must not matter
    long["decoder_tokens"][:, 7:] = 4
    expected, found = forward(model, params, short), forward(model, params, long)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name][:, : array.shape[1]], array, atol=2e-5)
    assert np.isfinite(found["logits"]).all()


def test_packed_is_separate(tiny):
    model, params = tiny(t5.Model)
    one, two = make_batch(rows=1, seed=1), make_batch(rows=1, length=5, decoder_length=9, seed=2)
    del one["prefix"], two["prefix"]
    packed = {
        k: np.concatenate([one[k], two[k] * 2 if "segments" in k else two[k]], axis=1) for k in one
    }
    found = forward(model, params, packed)
    for batch, start in ((one, 0), (two, 1)):
        for name, expected in forward(model, params, batch).items():
            at = start * one["tokens" if name == "encoder" else "decoder_tokens"].shape[1]
            got = found[name][:, at : at + expected.shape[1]]
            np.testing.assert_allclose(got, expected, atol=2e-5)


def loss_and_gradient(model, batch, targets):
    def loss(params, batch, targets):
        rngs = {"dropout": jax.random.key(3)}
        out = model.apply({"params": params}, batch, train=True, rngs=rngs)
        return cross_entropy(out["logits"], targets)[0].mean()

    return jax.value_and_grad(loss)


COMPUTES = [
    Compute(scan=False),
    Compute(remat="full"),
    Compute(remat="qkv"),
    Compute(remat="dots", scan=False),
]


@pytest.fixture(scope="module")
def trained():
    """Batch, targets, parameters, dim names, and loss and gradients with dropout, scanned."""
    batch = make_batch(rows=8, length=8, decoder_length=8, vocab=DROPOUT.vocab)
    targets = np.roll(batch["decoder_tokens"], -1, axis=1)
    params, axes = init(t5.Model(DROPOUT), batch)
    expected = jax.jit(loss_and_gradient(t5.Model(DROPOUT), batch, targets))(params, batch, targets)
    return batch, targets, params, axes, expected


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: f"scan={c.scan},remat={c.remat}")
def test_how_it_is_computed_changes_nothing(trained, compute):
    batch, targets, params, _, expected = trained
    step = jax.jit(loss_and_gradient(t5.Model(DROPOUT, compute), batch, targets))
    assert_same(step(params, batch, targets), expected)


def test_remat_computes_again_what_it_says(trained):
    batch, targets, params, *_ = trained

    def products(remat):
        step = loss_and_gradient(t5.Model(DROPOUT, Compute(remat=remat)), batch, targets)
        return str(jax.make_jaxpr(step)(params, batch, targets)).count(" dot_general")

    keep, dots, qkv, full = map(products, ("none", "dots", "qkv", "full"))
    # Encoder, self- and cross-attention each have two products without weights, 3 projections and
    # an output; a gated feed-forward layer has two products before its last (which nobody needs
    # again).
    assert dots - keep == 3 * 2
    assert qkv - keep == 3 * (2 + 1) + 2 * 2
    assert full - keep == 3 * (2 + 4) + 2 * 2


def test_the_tree_does_not_depend_on_how_it_is_computed():
    trees = [
        jax.eval_shape(lambda m=m: m.init(jax.random.key(0), make_batch(), train=False))
        for m in (t5.Model(TINY), t5.Model(TINY, Compute(scan=False, remat="full")))
    ]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    assert jax.tree.leaves(trees[0]) == jax.tree.leaves(trees[1])


def test_sharded_as_declared(trained, capfd):
    batch, targets, params, axes, expected = trained
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, tensor=4))
    with sharding.using(layout):
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, _: layout.sharding(axes[named.path_name(path)]), params
        )
        rows = layout.sharding(("batch", "length"))
        step = jax.jit(
            loss_and_gradient(t5.Model(DROPOUT), batch, targets),
            in_shardings=(shardings, rows, rows),
            out_shardings=(None, shardings),
        )
        found = step(jax.device_put(params, shardings), batch, targets)
    assert_same(found, expected)
    local = {
        named.path_name(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[1])
    }
    assert local["embed/table"] == (256 // 4, 32 // 2)
    assert local["head/kernel"] == (32 // 2, 256 // 4)
    assert local["encoder/layers/attention/query"] == (2, 32 // 2, 32 // 4)
    assert local["decoder/layers/cross_attention/out"] == (2, 32 // 4, 32 // 2)
    assert local["decoder/layers/mlp/in"] == (2, 32 // 2, 48 // 4)
    assert local["encoder/bias/table"] == (32, 1)
    assert local["encoder/norm/scale"] == (32,)
    assert "rematerialization" not in capfd.readouterr().err


def test_dropout_noise_is_shared_along_the_length(tiny):
    # One token everywhere: without the position bias all positions are equal, and stay so under
    # shared noise.
    model, params = t5.Model(DROPOUT), None
    batch = make_batch()
    batch["tokens"][:] = 7
    params, _ = init(model, batch)
    params["encoder"]["bias"]["table"] = jnp.zeros_like(params["encoder"]["bias"]["table"])

    def encode(key):
        return model.apply(
            {"params": params}, batch, train=True, rngs={"dropout": key}, method="encode"
        )

    one, other = (np.asarray(jax.jit(encode)(jax.random.key(n))) for n in (0, 1))
    np.testing.assert_allclose(one, np.broadcast_to(one[:, :1], one.shape), atol=1e-5)
    assert not np.allclose(one[0], one[1], atol=1e-2)  # rows draw their own
    assert not np.allclose(one, other, atol=1e-2)
    zeros = (one == 0).mean()
    assert 0.1 < zeros < 0.3  # the noise after the final norm, rate 0.2


def test_initial_values():
    """Standard deviations of mesh-tensorflow's and T5X's initializers (moments; draws cannot
    agree).
    """
    size = t5.Size(2, 64, 256, 16, head_dim=8, vocab=512)
    params, _ = init(t5.Model(size), make_batch())
    layer = params["decoder"]["layers"]
    expected = {
        "embed": (params["embed"]["table"], 1.0),
        "query": (layer["attention"]["query"], (64 * 8) ** -0.5),
        "key": (layer["cross_attention"]["key"], 64**-0.5),
        "value": (layer["attention"]["value"], 64**-0.5),
        "out": (layer["attention"]["out"], (16 * 8) ** -0.5),
        "mlp in": (layer["mlp"]["gate"], 64**-0.5),
        "mlp out": (layer["mlp"]["out"], 256**-0.5),
        "head": (params["head"]["kernel"], 64**-0.5),
        "bias": (params["encoder"]["bias"]["table"], (2 / (32 + 16)) ** 0.5),
    }
    for name, (array, deviation) in expected.items():
        assert abs(np.std(array) / deviation - 1) < 0.08, name
    assert not np.array_equal(layer["mlp"]["in"][0], layer["mlp"]["in"][1])
    assert (np.asarray(layer["mlp_norm"]["scale"]) == 1).all()


@pytest.mark.parametrize("family", MODELS)
def test_flops_are_those_the_compiler_counts(family):
    model = family(t5.Size(2, 128, 384, 4, head_dim=48, vocab=1024), Compute(scan=False))
    batch = make_batch(rows=4, length=96, decoder_length=64, vocab=1024)
    params = jax.eval_shape(lambda: named.unbox(init(model, batch)[0]))

    def logits(params):
        return model.apply({"params": params}, batch, train=False)["logits"].logits()

    counted = jax.jit(logits).lower(params).cost_analysis()["flops"]
    analytic = model.flops({name: array.shape for name, array in batch.items()})
    assert analytic < counted < 1.1 * analytic


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(heads=0), "model.size.heads=0"),
        (dict(dropout=1.0), "model.size.dropout=1.0"),
        (dict(buckets=2), "at least 4 buckets"),
        (dict(max_distance=16), "max_distance"),
        (dict(decoder_depth=-1), "decoder_depth"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        t5.Size(**dict(depth=1, width=8, mlp=8, heads=1) | change)
