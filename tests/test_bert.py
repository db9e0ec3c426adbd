"""BERT, and RoFormer: equal to the published models, and all that the design claims of a model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named, sharding
from flaxlm.convert import bert as convert
from flaxlm.convert.table import write
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.models import bert
from flaxlm.nn.compute import Compute
from flaxlm.nn.positions import Alibi, Rotary, Sinusoidal
from flaxlm.step import Applied
from tests import encoders

TINY = bert.SIZES["tiny"]
DROPOUT = bert.Size(2, 32, 48, 4, vocab=256, length=16, dropout=0.2, attention_dropout=0.3)
HEADS = ("head", "pair")


@pytest.mark.parametrize("case", encoders.cases("bert", "roformer"))
def test_equals_the_published_model(case):
    tensors, _, back = encoders.check_golden(convert, case)
    short = {name.removeprefix(convert.PREFIX): array for name, array in back.items()}
    back = short if case == "bert_bare" else back  # transformers' bare model has no prefix
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("case", ["bert_c", "bert_masked", "roformer_c"])
def test_equals_transformers_as_installed(case, tmp_path):
    encoders.check_live(convert, encoders.CASES.CONFIGS[case] | {"vocab_size": 99}, tmp_path)


def test_the_two_gelus_are_told_apart():
    """With the wrong one the goldens would not hold."""
    config = encoders.CASES.CONFIGS["bert_a"]
    model = convert.model_of(config)
    assert model.activation is bert.gelu_tanh
    batch = encoders.CASES.inputs(config, seed=1)
    params, _ = encoders.init(model, batch)
    params = jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, params)
    out = [
        encoders.forward(model.clone(activation=function), params, batch)["hidden"]
        for function in (bert.gelu_tanh, bert.gelu_erf)
    ]
    assert np.abs(out[0] - out[1]).max() > 1e-4


def written():
    config = encoders.CASES.CONFIGS["bert_masked"]
    model = convert.model_of(config)
    params, _ = encoders.init(model, encoders.CASES.inputs(config, seed=0))
    return model, write(convert.table(model), params)


def test_files_of_older_versions_are_read():
    model, tensors = written()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(23)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    old["bert.pooler.dense.weight"] = np.zeros((20, 20), np.float32)
    back = write(convert.table(model), encoders.read(convert, model, old))
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_conversion_refuses_what_does_not_fit():
    model, tensors = written()
    name = "bert.encoder.layer.1.attention.self.key.bias"
    with pytest.raises(MissingInput, match=re.escape(name)):
        encoders.read(convert, model, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(DataError, match="no place"):
        encoders.read(convert, model, tensors | {name.replace(".1.", ".2."): tensors[name]})
    config = encoders.CASES.CONFIGS["bert_a"]
    for change, message in [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"tie_word_embeddings": False}, "tie_word"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
    ]:
        with pytest.raises(ConfigError, match=message):
            convert.model_of(config | change)
    for model, message in [
        (bert.Model(TINY, positions=Alibi()), "Alibi"),
        (bert.Model(TINY, positions=Rotary()), "interleaved"),
        (bert.Model(TINY, positions=Rotary(interleaved=True)), "RoFormerForMaskedLM"),
        (bert.Model(TINY, activation=jax.nn.relu), "activation"),
        (bert.Model(bert.Size(1, 8, 8, 2, types=0)), "types"),
        (bert.Model(bert.Size(1, 8, 8, 2, embed_width=4)), "embed_width"),
    ]:
        with pytest.raises(ConfigError, match=message):
            convert.config_of(model)


# Of BertForPreTraining and BertForMaskedLM, tied matrices counted once.
WITH_HEADS = {
    "base_uncased": (110_106_428, 109_514_298),
    "base_cased": (108_932_934, 108_340_804),
    "large_uncased": (336_226_108, 335_174_458),
    "large_cased": (334_661_958, 333_610_308),
}


@pytest.mark.parametrize("name", bert.PARAMETERS)
def test_published_parameter_counts(name):
    size = bert.SIZES[name]
    assert encoders.count(bert.Model(size), without=HEADS) == bert.PARAMETERS[name]
    assert encoders.count(bert.Encoder(size)) == bert.PARAMETERS[name]
    if name in WITH_HEADS:
        found = encoders.count(bert.Model(size)), encoders.count(bert.MaskedLanguageModel(size))
        assert found == WITH_HEADS[name]


def test_sizes_are_the_published_ones():
    assert bert.PARAMETERS.keys() == bert.SIZES.keys() - {"tiny"}


def test_outputs():
    params, _ = encoders.init(bert.Model(TINY))
    out = encoders.forward(bert.Model(TINY), params, encoders.make_batch())
    expected = dict(
        logits=(2, 12, 512), hidden=(2, 12, 48), embedded=(2, 12, 48), pooled=(2, 48),
        pair_logits=(2, 2),
    )  # fmt: skip
    assert {name: array.shape for name, array in out.items()} == expected
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in out.values())
    low = bert.Model(TINY, Compute(dtype="bfloat16"))
    low = low.apply({"params": params}, encoders.make_batch(), train=False)
    assert low["hidden"].dtype == jnp.bfloat16
    assert low["pair_logits"].dtype == low["logits"].logits().dtype == jnp.float32
    np.testing.assert_allclose(low["logits"].logits(), out["logits"], atol=0.1)


def test_layers_are_shown_on_request():
    model = bert.MaskedLanguageModel(TINY)
    params, _ = encoders.init(model)
    out = Applied(model, params)(encoders.make_batch(), rng=None, layers=True)
    assert out["layers/hidden"].shape == (2, 2, 12, 48)
    assert out["layers/attention/scores"].shape == (2, 2, 4, 12, 12)
    np.testing.assert_array_equal(out["layers/hidden"][-1], out["hidden"])


POSITIONS = [None, Rotary(interleaved=True), Rotary(), Alibi(), Sinusoidal()]


@pytest.mark.parametrize("positions", POSITIONS, ids=lambda p: type(p).__name__)
def test_any_position_encoding_goes_with_it(positions):
    model = bert.Model(TINY, positions=positions)
    assert model.longest == (64 if positions is None else None)
    assert ("embed/positions/table" in encoders.shapes(model)) == (positions is None)
    encoders.check_padding(model)
    params, _ = encoders.init(model)
    params = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params)
    batch = encoders.make_batch()
    swapped = batch | {"tokens": batch["tokens"].copy()}
    swapped["tokens"][:, [3, 4]] = batch["tokens"][:, [4, 3]]
    a, b = (encoders.forward(model, params, x)["hidden"][:, 8] for x in (batch, swapped))
    assert not np.allclose(a, b, atol=1e-3), "the order must matter"


def test_packed_is_separate():
    encoders.check_packed(bert.MaskedLanguageModel(TINY))


def test_how_it_is_computed_changes_nothing():
    encoders.check_computes(
        bert.Model(DROPOUT), Compute(scan=False), Compute(remat="full"),
        Compute(remat="dots", scan=False),
    )  # fmt: skip


def test_sharded_as_declared(capfd):
    model = bert.Model(DROPOUT)
    batch = encoders.make_batch(rows=8, length=8, vocab=256)
    params, axes = encoders.init(model, batch)
    expected = jax.jit(encoders.loss_and_gradient(model))(params, batch)
    layout = sharding.make_layout(sharding.Mesh(data=1, fsdp=2, tensor=4))
    with sharding.using(layout):
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, _: layout.sharding(axes[named.path_name(path)]), params
        )
        rows = layout.sharding(("batch", "length"))
        step = jax.jit(
            encoders.loss_and_gradient(model),
            in_shardings=(shardings, rows),
            out_shardings=(None, shardings),
        )
        found = step(jax.device_put(params, shardings), batch)
    encoders.assert_same(found, expected)
    local = {
        named.path_name(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[1])
    }
    assert local["embed/tokens/table"] == (256 // 4, 32 // 2)
    assert local["embed/positions/table"] == (16, 32 // 2)
    assert local["layers/attention/query"] == (2, 32 // 2, 32 // 4)
    assert local["layers/mlp/out"] == (2, 48 // 4, 32 // 2)
    assert local["head/dense/kernel"] == (32 // 2, 32)
    assert local["head/bias"] == (256 // 4,)
    assert "rematerialization" not in capfd.readouterr().err


def test_initial_values():
    """A normal of 0.02 cut at two deviations has a deviation of 0.0176."""
    params, _ = encoders.init(bert.Model(bert.Size(2, 64, 256, 4, vocab=512)))
    layer = params["layers"]
    for array in (
        params["embed"]["tokens"]["table"],
        params["embed"]["positions"]["table"],
        layer["attention"]["query"],
        layer["mlp"]["out"],
        params["pooler"]["kernel"],
        params["head"]["dense"]["kernel"],
    ):
        assert abs(np.std(array) / 0.0176 - 1) < 0.06
        assert np.abs(array).max() <= 0.04
    assert not np.array_equal(layer["mlp"]["in"][0], layer["mlp"]["in"][1])
    assert not np.any(layer["attention"]["out_bias"]) and not np.any(params["head"]["bias"])


@pytest.mark.parametrize("family", [bert.Model, bert.MaskedLanguageModel, bert.Encoder])
def test_flops_are_those_the_compiler_counts(family):
    model = family(bert.Size(2, 128, 384, 4, vocab=1024), Compute(scan=False))
    batch = encoders.make_batch(rows=4, length=96, vocab=1024)
    params = jax.eval_shape(lambda: encoders.init(model, batch)[0])

    def outputs(params):
        out = model.apply({"params": params}, batch, train=False)
        return out | ({"logits": out["logits"].logits()} if "logits" in out else {})

    counted = jax.jit(outputs).lower(params).cost_analysis()["flops"]
    analytic = model.flops({name: array.shape for name, array in batch.items()})
    assert analytic < counted < 1.1 * analytic


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(heads=3), "heads=3 does not divide"),
        (dict(depth=0), "model.size.depth=0"),
        (dict(types=-1), "types=-1"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(attention_dropout=-0.1), "attention_dropout"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        bert.Size(**dict(depth=1, width=8, mlp=8, heads=1) | change)
