"""GPT-1, 2 and 3: equal to the published models, and all that the design claims of a model."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named, sharding
from flaxlm.convert import gpt1 as convert1
from flaxlm.convert import gpt2 as convert2
from flaxlm.convert.table import read, write
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.models import gpt1, gpt2, gpt3
from flaxlm.nn.compute import Compute
from flaxlm.nn.positions import Alibi
from tests.gpts import PARITY, changed, forward, init, load, loss, loud, make_batch, parameters

FAMILIES = {"gpt1": gpt1, "gpt2": gpt2, "gpt3": gpt3}
CASES = load(PARITY / "gpt_cases.py")


def model_of(family: str, case: dict):
    numbers = dict(case)
    band = numbers.pop("band")
    if family == "gpt1":
        numbers["mlp"] = 4 * numbers["width"]
    if family == "gpt3":
        numbers["band"] = band
    return FAMILIES[family].Model(FAMILIES[family].Size(**numbers))


def params_of(convert, model, tensors: dict) -> dict:
    return read(
        convert.table(model),
        tensors,
        ignored=convert.IGNORED,
        aliases=convert.ALIASES,
        prefix=convert.PREFIX,
    )


def converted(family: str, model, tensors: dict):
    """Parameters from tensors, and a check that the way back gives them to the bit."""
    if family == "gpt3":
        tensors = CASES.banded_as_dense(tensors, vars(model.size))
        model = gpt2.Model(gpt2.Size(**{k: v for k, v in vars(model.size).items() if k != "band"}))
    convert = convert1 if family == "gpt1" else convert2
    params = params_of(convert, model, tensors)
    back = write(convert.table(model), params)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    return params


def assert_equal(found: dict, expected: dict, batch: dict, step: int = 1):
    """Logits and hidden states agree at every `step`-th position that is not padding."""
    where = batch["segments"][:, ::step] > 0
    for name in ("logits", "hidden"):
        ours = found[name][:, ::step, : expected[name].shape[-1]]
        np.testing.assert_allclose(ours[where], expected[name][where], atol=1e-4, rtol=0)
    assert np.abs(expected["logits"][where]).max() > 1, "the case is too quiet to find a mistake"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES.SIZES)
def test_equals_the_published_model(case, family):
    data = np.load(PARITY / f"gpt_{case}.npz")
    batch = {k.removeprefix("input/"): data[k] for k in data.files if k.startswith("input/")}
    start = f"{family}/shape/"
    names = [k.removeprefix(start) for k in data.files if k.startswith(start)]
    tensors = {name: CASES.tensor(name, tuple(data[start + name])) for name in names}
    model = model_of(family, CASES.SIZES[case])
    out = forward(model, converted(family, model, tensors), batch)
    assert (out["logits"][..., model.size.vocab :] < -1e29).all()
    expected = {name: data[f"{family}/{name}"] for name in ("logits", "hidden")}
    assert_equal(out, expected, batch, step=7)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_as_installed(family):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    sys.path.insert(0, str(PARITY))
    try:
        make = load(PARITY / "make_gpt.py")
    finally:
        sys.path.remove(str(PARITY))
    case = dict(depth=4, width=30, mlp=22, heads=5, head_dim=6, vocab=99, positions=70, band=9)
    theirs, model = make.build(family, case), model_of(family, case)
    batch = CASES.inputs(case, (3, 65), seed=5)
    out = forward(model, converted(family, model, make.weights(theirs)), batch)
    assert_equal(out, make.outputs(theirs, batch), batch)
    if family != "gpt3":  # every option of the file that we write is one of theirs, and back
        convert = convert1 if family == "gpt1" else convert2
        config = type(theirs.config)(**convert.config_of(model)).to_dict()
        assert convert.model_of(config).size == model.size
        assert convert.model_of(theirs.config.to_dict()).size == model.size
        full = {name: x.numpy() for name, x in theirs.state_dict().items()}  # the tied copy too
        bare = {name: x.numpy() for name, x in theirs.transformer.state_dict().items()}
        for tensors in (full, bare):
            found = forward(model, params_of(convert, model, tensors), batch)
            assert_equal(found, make.outputs(theirs, batch), batch)


@pytest.mark.parametrize("convert, family", [(convert1, gpt1), (convert2, gpt2)])
def test_configurations(convert, family):
    for name, size in family.SIZES.items():
        model = family.Model(size)
        assert convert.model_of(convert.config_of(model)).size == size, name
        assert convert.config_of(model)["model_type"] in convert.MODEL_TYPES
    published = {"model_type": convert.MODEL_TYPES[0]}
    assert convert.model_of(published).size == next(
        size for name, size in family.SIZES.items() if name != "tiny"
    )
    with pytest.raises(ConfigError, match="12 heads of 63 are not the width 768"):
        convert.config_of(family.Model(family.Size(12, 768, 3072, 12, head_dim=63)))


@pytest.mark.parametrize(
    "convert, field, value",
    [
        (convert1, "afn", "relu"),
        (convert1, "tie_word_embeddings", False),
        (convert1, "n_head", 7),
        (convert1, "attn_pdrop", 0.2),
        (convert2, "activation_function", "gelu"),
        (convert2, "scale_attn_weights", False),
        (convert2, "scale_attn_by_inverse_layer_idx", True),
        (convert2, "reorder_and_upcast_attn", True),
        (convert2, "add_cross_attention", True),
        (convert2, "tie_word_embeddings", False),
        (convert2, "resid_pdrop", 0.0),
    ],
)
def test_configurations_that_we_do_not_have_are_refused(convert, field, value):
    with pytest.raises(ConfigError, match=f"config.json: .*{field}={value!r}") as refused:
        convert.model_of({field: value})
    assert "\n" not in str(refused.value)


def test_models_that_transformers_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="mlp=100"):
        convert1.config_of(gpt1.Model(replace(gpt1.SIZES["tiny"], mlp=100)))
    with pytest.raises(ConfigError, match="Alibi"):
        convert2.table(gpt2.Model(gpt2.SIZES["tiny"], positions=Alibi()))
    with pytest.raises(ConfigError, match="banded"):
        convert2.config_of(gpt3.Model(gpt3.SIZES["tiny"]))


def test_conversion_refuses_what_does_not_fit():
    model = model_of("gpt2", CASES.SIZES["a"])
    params, _ = init(model, make_batch(vocab=77))
    entries = convert2.table(model)
    tensors, name = write(entries, params), "transformer.h.1.attn.c_attn.weight"
    with pytest.raises(MissingInput, match=name.replace(".", r"\.")):
        read(entries, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(DataError, match=r"\[45, 15\].*\[15, 45\]"):
        read(entries, tensors | {name: tensors[name].T})
    masks = {f"transformer.h.{i}.attn.{x}": np.ones(()) for i in range(2) for x in ("bias",)}
    read(entries, tensors | masks, ignored=convert2.IGNORED)


@pytest.mark.parametrize(
    "family, name", [(f, name) for f in FAMILIES.values() for name in f.PARAMETERS]
)
def test_published_parameter_counts(family, name):
    """The readout is the embedding table; nothing else is added."""
    assert parameters(family.Model(family.SIZES[name])) == family.PARAMETERS[name]


def test_sizes_are_the_published_ones():
    for family in FAMILIES.values():
        assert family.PARAMETERS.keys() == family.SIZES.keys() - {"tiny"}
    assert [len(family.PARAMETERS) for family in FAMILIES.values()] == [1, 4, 8]


@pytest.fixture(scope="module")
def tiny():
    """Per family: model and parameters."""
    made = {}

    def get(family):
        if family not in made:
            model = FAMILIES[family].Model(FAMILIES[family].SIZES["tiny"])
            made[family] = model, loud(init(model, make_batch())[0])
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs(tiny, family):
    model, params = tiny(family)
    out = forward(model, params, make_batch())
    assert {name: x.shape for name, x in out.items()} == {
        "logits": (2, 12, 512),
        "hidden": (2, 12, 64),
    }
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in out.values())
    model = model.clone(compute=Compute(dtype="bfloat16"))
    low = model.apply({"params": params}, make_batch(), train=False)
    assert low["hidden"].dtype == jnp.bfloat16 and low["logits"].logits().dtype == jnp.float32
    assert np.abs(low["hidden"].astype(np.float32) - out["hidden"]).mean() < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_the_past_does_not_see_the_future(tiny, family):
    model, params = tiny(family)
    batch = make_batch()
    before = forward(model, params, batch)["logits"]
    after = forward(model, params, changed(batch, 6))["logits"]
    assert np.array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(tiny, family):
    model, params = tiny(family)
    short = make_batch()
    long = {name: np.pad(x, ((0, 0), (0, 5))) for name, x in short.items()}
    long["tokens"][:, 12:] = 3  # what stands on padding must not matter
    expected, found = forward(model, params, short), forward(model, params, long)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name][:, :12], array, atol=5e-5)
        assert np.isfinite(found[name]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_separate(tiny, family):
    model, params = tiny(family)
    one, two = make_batch(rows=1, seed=1), make_batch(rows=1, length=9, seed=2)
    two["segments"] *= 2
    packed = {name: np.concatenate([one[name], two[name]], axis=1) for name in one}
    found = forward(model, params, packed)["hidden"]
    for batch, place in ((one, slice(0, 12)), (two, slice(12, 21))):
        expected = forward(model, params, batch)["hidden"]
        np.testing.assert_allclose(found[:, place], expected, atol=5e-5)


@pytest.fixture(scope="module")
def trained():
    """Per family: batch, parameters, dim names, and loss and gradients with dropout, scanned."""
    made = {}

    def get(family):
        if family not in made:
            size = FAMILIES[family].Size(
                3, 32, 64, 4, head_dim=16, vocab=256, positions=16, dropout=0.2
            )
            model, batch = FAMILIES[family].Model(size), make_batch(rows=8, length=8, vocab=256)
            params, axes = init(model, batch)
            expected = jax.jit(jax.value_and_grad(lambda p: loss(model, batch, p)))(params)
            made[family] = model, batch, params, axes, expected
        return made[family]

    return get


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1e-2, np.abs(b).max()))


COMPUTES = [Compute(scan=False), Compute(remat="full"), Compute(remat="qkv", scan=False)]


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: f"scan={c.scan},remat={c.remat}")
@pytest.mark.parametrize("family", FAMILIES)
def test_how_it_is_computed_changes_nothing(trained, family, compute):
    model, batch, params, _, expected = trained(family)
    model = model.clone(compute=compute)
    assert_same(jax.jit(jax.value_and_grad(lambda p: loss(model, batch, p)))(params), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_as_declared(trained, family, capfd):
    model, batch, params, axes, expected = trained(family)
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, tensor=4))
    with sharding.using(layout):
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, _: layout.sharding(axes[named.path_name(path)]), params
        )
        rows = layout.sharding(("batch", "length"))
        step = jax.jit(
            jax.value_and_grad(lambda params, batch: loss(model, batch, params)),
            in_shardings=(shardings, rows),
            out_shardings=(None, shardings),
        )
        found = step(jax.device_put(params, shardings), batch)
    assert_same(found, expected)
    local = {
        named.path_name(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[1])
    }
    assert local["embed/table"] == (256 // 4, 32 // 2)
    assert local["positions/table"] == (16, 32 // 2)
    assert local["layers/attention/query"] == (3, 32 // 2, 64 // 4)
    assert local["layers/attention/query_bias"] == (3, 64 // 4)
    assert local["layers/attention/out"] == (3, 64 // 4, 32 // 2)
    assert local["layers/mlp/in"] == (3, 32 // 2, 64 // 4)
    assert local["layers/mlp_norm/scale"] == (3, 32)
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_split_over_devices(trained, family, capfd):
    model, batch, params, _, expected = trained(family)
    layout = sharding.make_layout(sharding.Mesh(data=2, sequence=4))
    with sharding.using(layout):
        step = jax.jit(
            jax.value_and_grad(lambda params, batch: loss(model, batch, params)),
            in_shardings=(layout.sharding(()), layout.sharding(("batch", "length"))),
        )
        assert_same(step(params, batch), expected)
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_values(family):
    size = FAMILIES[family].Size(8, 64, 256, 4, head_dim=16, vocab=512, positions=64)
    params, _ = init(FAMILIES[family].Model(size), make_batch())
    layer, residual = params["layers"], 0.02 if family == "gpt1" else 0.02 / 4  # sqrt(2 x 8)
    expected = {
        "embed": (params["embed"]["table"], 0.02),
        "positions": (params["positions"]["table"], 0.02 if family == "gpt1" else 0.01),
        "query": (layer["attention"]["query"], 0.02),
        "value": (layer["attention"]["value"], 0.02),
        "out": (layer["attention"]["out"], residual),
        "mlp in": (layer["mlp"]["in"], 0.02),
        "mlp out": (layer["mlp"]["out"], residual),
    }
    for name, (array, deviation) in expected.items():
        assert abs(np.std(array) / deviation - 1) < 0.08, name
    assert not np.array_equal(layer["mlp"]["in"][0], layer["mlp"]["in"][1])
    assert not layer["mlp"]["in_bias"].any() and (layer["mlp_norm"]["scale"] == 1).all()
    assert ("norm" in params) == (family != "gpt1")


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_the_compiler_counts(family):
    size = FAMILIES[family].Size(2, 128, 384, 4, head_dim=48, vocab=1024, positions=96)
    model = FAMILIES[family].Model(size, Compute(scan=False))
    batch = make_batch(rows=4, length=96, vocab=1024)
    params = jax.eval_shape(lambda: init(model, batch)[0])

    def logits(params):
        return model.apply({"params": params}, batch, train=False)["logits"].logits()

    counted = jax.jit(logits).lower(params).cost_analysis()["flops"]
    analytic = model.flops({name: array.shape for name, array in batch.items()})
    assert analytic < counted < 1.1 * analytic


@pytest.mark.parametrize("family", FAMILIES.values())
def test_impossible_sizes_are_refused(family):
    for change in (dict(heads=0), dict(positions=0), dict(dropout=1.0), dict(vocab=-1)):
        [(name, value)] = change.items()
        with pytest.raises(ConfigError, match=f"model.size.{name}={value}"):
            family.Size(**dict(depth=1, width=8, mlp=8, heads=1) | change)
    assert family.Model(family.SIZES["tiny"]).longest == 128
