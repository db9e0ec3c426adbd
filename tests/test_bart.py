"""BART: equal to the published model, and all that the design claims of a model."""

import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named, sharding
from flaxlm.convert import bart as convert
from flaxlm.convert.folder import params_of, read_folder, write_folder
from flaxlm.convert.table import read, write
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.losses import cross_entropy
from flaxlm.models import bart
from flaxlm.nn.compute import Compute
from flaxlm.objectives.denoising import Denoising
from flaxlm.step import Applied
from tests.gpts import PARITY, forward, init, load, loud

TINY = bart.SIZES["tiny"]
DROPOUT = bart.Size(2, 32, 48, 4, vocab=256, positions=16, dropout=0.2, mlp_dropout=0.1)
CASES = load(PARITY / "bart_cases.py")
OUTPUTS = ("logits", "hidden", "encoder")


def make_batch(rows=2, length=12, decoder_length=7, vocab=TINY.vocab, seed=0):
    rng = np.random.default_rng(seed)
    batch = {}
    for prefix, width in (("", length), ("decoder_", decoder_length)):
        batch[prefix + "tokens"] = rng.integers(3, vocab, (rows, width)).astype(np.int32)
        batch[prefix + "segments"] = np.ones((rows, width), np.int32)
    return batch


@pytest.fixture(scope="module")
def tiny():
    model = bart.Model(TINY)
    return model, loud(init(model, make_batch())[0])


def assert_equal(found, expected, batch, step=1):
    """All outputs agree at every `step`-th position that is not padding."""
    for name in OUTPUTS:
        where = batch["segments" if name == "encoder" else "decoder_segments"][:, ::step] > 0
        ours = found[name][:, ::step, : expected[name].shape[-1]]
        np.testing.assert_allclose(ours[where], expected[name][where], atol=1e-4, rtol=0)
    assert np.abs(expected["logits"]).max() > 1, "the case is too quiet to find a mistake"


@pytest.mark.parametrize("case", CASES.SIZES)
def test_equals_the_published_model(case):
    model = bart.Model(bart.Size(**CASES.SIZES[case]))
    data = np.load(PARITY / f"bart_{case}.npz")
    batch = {k.removeprefix("input/"): data[k] for k in data.files if k.startswith("input/")}
    shapes = {k.removeprefix("shape/"): data[k] for k in data.files if k.startswith("shape/")}
    tensors = {name: CASES.tensor(name, tuple(shape)) for name, shape in shapes.items()}
    params = read(convert.table(model), tensors)
    back = write(convert.table(model), params)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)

    out = forward(model, params, batch)
    assert (out["logits"][..., model.size.vocab :] < -1e29).all()
    assert_equal(out, {name: data[name] for name in OUTPUTS}, batch, step=7)


def test_equals_transformers_as_installed(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    sys.path.insert(0, str(PARITY))
    try:
        make = load(PARITY / "make_bart.py")
    finally:
        sys.path.remove(str(PARITY))
    numbers = dict(depth=2, width=30, mlp=22, heads=5, vocab=99, decoder_depth=3, positions=40)
    theirs = make.build(numbers)
    batch = CASES.inputs(numbers, (3, 40, 21), seed=5)
    expected = make.outputs(theirs, batch)

    # Their folder here; the bare model's folder, whose names have no prefix, too.
    theirs.save_pretrained(tmp_path / "theirs")
    theirs.model.save_pretrained(tmp_path / "bare")
    model, params = read_folder(tmp_path / "theirs")
    size = bart.Size(**numbers)
    assert model.size == replace(size, attention_dropout=0.0)
    assert_equal(forward(model, params, batch), expected, batch)
    _, bare = read_folder(tmp_path / "bare")
    jax.tree.map(np.testing.assert_array_equal, params, bare)

    # Our folder there, loaded as either class.
    (tmp_path / "ours").mkdir()
    write_folder(tmp_path / "ours", model, params, None)
    for kind in (transformers.BartForConditionalGeneration, transformers.BartModel):
        loaded, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not info["unexpected_keys"]
        assert set(info["missing_keys"]) <= {"final_logits_bias"}
        state, original = loaded.state_dict(), theirs.state_dict()
        for name, tensor in state.items():
            full = name if name in original else f"model.{name}"
            assert torch.equal(tensor, original[full]), name


def test_conversion_refuses_what_does_not_fit(tmp_path):
    model = bart.Model(bart.Size(**CASES.SIZES["a"]))
    params, _ = init(model, make_batch(vocab=77))
    tensors = write(convert.table(model), params)
    from_tensors = lambda tensors: params_of(tmp_path, model, tensors)
    name = "model.decoder.layers.0.encoder_attn.k_proj.weight"
    with pytest.raises(MissingInput, match=re.escape(name)):
        from_tensors({k: v for k, v in tensors.items() if k != name})
    position = "model.encoder.embed_positions.weight"  # without the offset's two rows
    with pytest.raises(DataError, match=r"\[19, 21\].*\[21, 21\]"):
        from_tensors(tensors | {position: tensors[position][2:]})
    with pytest.raises(DataError, match="classification_head"):
        from_tensors(tensors | {"classification_head.dense.weight": tensors[name]})
    bias = np.zeros((1, 77), np.float32)
    assert from_tensors(tensors | {"final_logits_bias": bias}).keys() == params.keys()
    bias[0, 5] = 1
    with pytest.raises(DataError, match=r"final_logits_bias.*must be 0"):
        from_tensors(tensors | {"final_logits_bias": bias})
    copy = {"model.encoder.embed_tokens.weight": tensors["model.shared.weight"]}
    assert from_tensors(tensors | copy).keys() == params.keys()
    with pytest.raises(DataError, match="must be a copy"):
        from_tensors(tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1})


@pytest.mark.parametrize("name", [*bart.SIZES, "a"])
def test_config_there_and_back(name):
    size = bart.SIZES[name] if name in bart.SIZES else bart.Size(**CASES.SIZES[name])
    config = convert.config_of(bart.Model(size))
    assert convert.model_of(config).size == size
    assert config["model_type"] in convert.MODEL_TYPES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "gelu_new"}, "activation_function='gelu_new'"),
        ({"scale_embedding": True}, "scale_embedding=True"),
        ({"normalize_before": True}, "normalize_before"),
        ({"normalize_embedding": False}, "normalize_embedding"),
        ({"add_final_layer_norm": True}, "add_final_layer_norm"),
        ({"static_position_embeddings": True}, "static_position_embeddings"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"decoder_ffn_dim": 64}, "encoder_ffn_dim=128, decoder_ffn_dim=64"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads=2"),
        ({"d_model": 66}, "d_model=66 is no multiple of 4"),
    ],
)
def test_other_models_are_refused(change, message):
    config = convert.config_of(bart.Model(TINY))
    with pytest.raises(ConfigError, match=message):
        convert.model_of(config | change)
    with pytest.raises(ConfigError, match="eps=1e-06"):
        convert.config_of(bart.Model(replace(TINY, eps=1e-6)))


def test_sizes_are_the_published_ones():
    assert bart.PARAMETERS.keys() == bart.SIZES.keys() - {"tiny"}
    assert bart.PARAMETERS == {
        "base": 139_420_416,
        "large": 406_291_456,
        "large_cnn": 406_290_432,
    }


@pytest.mark.parametrize("name", bart.PARAMETERS)
def test_published_parameter_counts(name):
    """Both stacks and one table; the readout has no parameters of its own."""
    size = bart.SIZES[name]
    params = jax.eval_shape(lambda: init(bart.Model(size), make_batch())[0])
    padding = (-size.vocab % 128) * size.width
    assert sum(x.size for x in jax.tree.leaves(params)) - padding == bart.PARAMETERS[name]


def test_outputs(tiny):
    out = forward(*tiny, make_batch())
    assert out.keys() == set(OUTPUTS)
    for name, length in {"logits": 7, "hidden": 7, "encoder": 12}.items():
        assert out[name].shape == (2, length, TINY.vocab if name == "logits" else TINY.width)
        assert out[name].dtype == np.float32
        assert np.isfinite(out[name]).all()
    assert bart.Model(TINY).longest == 128


def test_bfloat16_computes_on_float32_parameters(tiny):
    _, params = tiny
    out = bart.Model(TINY, Compute(dtype="bfloat16")).apply(
        {"params": params}, make_batch(), train=False
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert out["hidden"].dtype == out["encoder"].dtype == jnp.bfloat16
    assert out["logits"].logits().dtype == jnp.float32


def test_sees_no_future(tiny):
    batch = make_batch()
    other = batch | {"decoder_tokens": batch["decoder_tokens"].copy()}
    other["decoder_tokens"][:, 4] = 3 + (other["decoder_tokens"][:, 4] + 1) % 500
    before, after = forward(*tiny, batch), forward(*tiny, other)
    assert np.array_equal(before["logits"][:, :4], after["logits"][:, :4])
    assert not np.allclose(before["logits"][:, 4], after["logits"][:, 4], atol=1e-3)


def test_positions_matter(tiny):
    batch = make_batch()
    other = batch | {"tokens": batch["tokens"][:, ::-1]}
    before, after = forward(*tiny, batch), forward(*tiny, other)
    assert not np.allclose(before["encoder"], after["encoder"][:, ::-1], atol=1e-2)


def test_padding_changes_nothing(tiny):
    short = make_batch()
    long = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in short.items()}
    long["tokens"][:, 12:] = 3  # what stands on padding must not matter
    long["decoder_tokens"][:, 7:] = 4
    expected, found = forward(*tiny, short), forward(*tiny, long)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name][:, : array.shape[1]], array, atol=5e-5)
    assert np.isfinite(found["logits"]).all()


def loss_and_gradient(model):
    def loss(params, batch, targets):
        rngs = {"dropout": jax.random.key(3)}
        out = model.apply({"params": params}, batch, train=True, rngs=rngs)
        return cross_entropy(out["logits"], targets)[0].mean()

    return jax.value_and_grad(loss)


@pytest.fixture(scope="module")
def trained():
    """Batch, targets, parameters, dim names, and loss and gradients with dropout, scanned."""
    batch = make_batch(rows=8, length=8, decoder_length=8, vocab=DROPOUT.vocab)
    targets = np.roll(batch["decoder_tokens"], -1, axis=1)
    params, axes = init(bart.Model(DROPOUT), batch)
    expected = jax.jit(loss_and_gradient(bart.Model(DROPOUT)))(params, batch, targets)
    return batch, targets, params, axes, expected


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "compute",
    [Compute(scan=False), Compute(remat="full"), Compute(remat="dots", scan=False)],
    ids=str,
)
def test_how_it_is_computed_changes_nothing(trained, compute):
    batch, targets, params, _, expected = trained
    step = jax.jit(loss_and_gradient(bart.Model(DROPOUT, compute)))
    assert_same(step(params, batch, targets), expected)


def test_sharded_as_declared(trained, capfd):
    batch, targets, params, axes, expected = trained
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, tensor=4))
    with sharding.using(layout):
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, _: layout.sharding(axes[named.path_name(path)]), params
        )
        rows = layout.sharding(("batch", "length"))
        step = jax.jit(
            loss_and_gradient(bart.Model(DROPOUT)),
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
    assert local["encoder/positions/table"] == (16 + 2, 32 // 2)
    assert local["encoder/layers/attention/query"] == (2, 32 // 2, 32 // 4)
    assert local["decoder/layers/cross_attention/out"] == (2, 32 // 4, 32 // 2)
    assert local["decoder/layers/mlp/in_bias"] == (2, 48 // 4)
    assert local["decoder/embedding_norm/scale"] == (32,)
    assert "rematerialization" not in capfd.readouterr().err


def test_initial_values():
    params, _ = init(bart.Model(bart.Size(2, 64, 256, 4, vocab=512)), make_batch())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = named.path_name(path)
        if name.endswith("scale"):
            assert (np.asarray(leaf) == 1).all(), name
        elif name.endswith("bias"):
            assert not np.asarray(leaf).any(), name
        else:
            assert abs(np.std(leaf) / 0.02 - 1) < 0.08, name
    kernel = params["decoder"]["layers"]["mlp"]["in"]
    assert not np.array_equal(kernel[0], kernel[1])


def test_flops_are_those_the_compiler_counts():
    size = bart.Size(2, 192, 384, 4, vocab=1024, decoder_depth=1, positions=96)
    model = bart.Model(size, Compute(scan=False))
    batch = make_batch(rows=4, length=96, decoder_length=64, vocab=1024)
    params = jax.eval_shape(lambda: init(model, batch)[0])

    def logits(params):
        return model.apply({"params": params}, batch, train=False)["logits"].logits()

    counted = jax.jit(logits).lower(params).cost_analysis()["flops"]
    analytic = model.flops({name: array.shape for name, array in batch.items()})
    assert analytic < counted < 1.1 * analytic


def test_greedy_decoding_follows_the_decoder(tiny):
    model, params = tiny
    batch = make_batch()
    batch["decoder_tokens"][:] = 2  # the start id; what follows is not read
    predicted = np.asarray(Denoising().predict(Applied(model, params), batch))
    batch["decoder_tokens"][:, 1:] = predicted[:, :-1]
    best = forward(model, params, batch)["logits"][..., : TINY.vocab].argmax(axis=-1)
    np.testing.assert_array_equal(predicted, best)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=0), "model.size.heads=0"),
        (dict(heads=3), "width=8 cannot be split into 3 heads.*6"),
        (dict(positions=0), "model.size.positions=0"),
        (dict(decoder_depth=-1), "decoder_depth"),
        (dict(dropout=1.0), "model.size.dropout=1.0"),
        (dict(attention_dropout=-0.1), "attention_dropout=-0.1"),
        (dict(mlp_dropout=2.0), "mlp_dropout=2.0"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        bart.Size(**dict(depth=1, width=8, mlp=8, heads=1) | change)
