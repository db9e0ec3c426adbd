"""Heads for tasks: equal to transformers' in every family, both ways."""

import json

import jax
import numpy as np
import pytest

from flaxlm import lm, safetensors
from flaxlm.convert import families, table
from flaxlm.errors import ConfigError
from flaxlm.models import bert, electra, xlnet
from flaxlm.nn.compute import Compute
from flaxlm.overrides import to_json
from flaxlm.rebuild import rebuild
from tests import encoders

CASES = encoders.load("heads_cases")
GOLDEN = np.load(encoders.PARITY / "heads.npz")


def family_of(case: str):
    return families.families()[case.partition("_")[0].removesuffix("v11")]


def logits(model, params, features) -> np.ndarray:
    found = jax.jit(lambda p, b: model.apply({"params": p}, b, train=False))(params, features)
    (name,) = found.keys() - {"logits"}
    assert name in ("class_logits", "tag_logits", "span_logits")
    return np.asarray(found[name])


def assert_equal(found, expected, segments):
    if expected.ndim == 3:
        found, expected = found[segments > 0], expected[segments > 0]
    assert np.abs(expected).max() > 0.1, "the case is too quiet to find a mistake"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES.CONFIGS)
def test_equals_the_published_head(case):
    config, family = CASES.CONFIGS[case], family_of(case)
    model = family.model_of(config)
    tensors = {
        name: CASES.tensor(name, entry.their_shape)
        for entry in family.table(model)
        for name in entry.names()
    }
    tensors |= {  # RoBERTa's one type, which is added to the positions
        entry.plus: CASES.tensor(entry.plus, (1, *entry.shape[1:]))
        for entry in family.table(model)
        if entry.plus
    }
    params = encoders.read(family, model, tensors)
    features = CASES.inputs(config)
    assert_equal(logits(model, params, features), GOLDEN[case], features["segments"])

    written = family.config_of(model)
    assert written["architectures"] == config["architectures"]
    assert family.model_of(written) == model
    back = table.write(family.table(model), params)
    assert back.keys() == tensors.keys()
    same = [name for name in back if np.array_equal(back[name], tensors[name])]
    assert set(back) - set(same) <= {e.plus for e in family.table(model)} | {
        e.theirs for e in family.table(model) if e.plus
    }


@pytest.mark.parametrize("case", CASES.CONFIGS)
def test_equals_transformers_as_installed(case, tmp_path):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    make, family = encoders.load("make_heads"), family_of(case)
    config = CASES.CONFIGS[case] | {"vocab_size": 99}
    theirs, features = make.build(config), CASES.inputs(config)
    model = family.model_of(config)
    params = encoders.read(family, model, make.weights(theirs))
    expected = make.logits(theirs, features)
    assert_equal(logits(model, params, features), expected, features["segments"])

    (tmp_path / "config.json").write_text(json.dumps(family.config_of(model)))
    safetensors.write(tmp_path / safetensors.NAME, table.write(family.table(model), params))
    named = getattr(transformers, config["architectures"][0])
    again, problems = named.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems[kind] for kind in ("unexpected_keys", "mismatched_keys")), problems
    assert not problems["missing_keys"], problems
    assert_equal(make.logits(again.eval(), features), expected, features["segments"])


def test_a_model_with_a_head_comes_back_from_its_description():
    model = bert.Classifier(bert.Encoder(bert.SIZES["tiny"], Compute(scan=False)), classes=3)
    assert rebuild(json.loads(json.dumps(to_json(model))), where="here") == model
    computing = model.clone(compute=Compute(dtype="bfloat16"), parent=None)
    assert computing.compute.dtype == "bfloat16" and computing.classes == 3


def test_it_is_loaded_and_scores(tmp_path):
    model = bert.Tagger(bert.Body(bert.SIZES["tiny"]), classes=5)
    params, _ = encoders.init(model)
    found = lm.LM(model, params, None, tmp_path)(encoders.make_batch())
    assert found["tag_logits"].shape == (2, 12, 5)


def test_a_row_of_a_family_that_ends_in_its_symbol_is_read_there():
    """What stands behind the last token does not matter, what stands at it does."""
    model = xlnet.Classifier(xlnet.Body(xlnet.SIZES["tiny"]), classes=2)
    batch = encoders.make_batch()
    batch["segments"][:, 9:] = 0
    params, _ = encoders.init(model, batch)
    params = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)
    expected = logits(model, params, batch)
    behind = batch | {"tokens": batch["tokens"].copy()}
    behind["tokens"][:, 9:] = 7
    np.testing.assert_allclose(logits(model, params, behind), expected, atol=1e-6)
    at = batch | {"tokens": batch["tokens"].copy()}
    at["tokens"][:, 8] += 1
    assert np.abs(logits(model, params, at) - expected).max() > 1e-4


def test_heads_drop_out_in_training_alone():
    model = electra.Classifier(electra.Body(electra.SIZES["tiny"].discriminator), classes=2)
    batch = encoders.make_batch()
    params, _ = encoders.init(model, batch)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return model.apply({"params": params}, batch, train=True, rngs=rngs)["class_logits"]

    assert not np.array_equal(run(jax.random.key(0)), run(jax.random.key(1)))


def test_a_head_says_what_its_encoder_lacks():
    model = bert.Classifier(bert.Body(bert.SIZES["tiny"]), classes=2)
    with pytest.raises(ConfigError, match=r"reads 'pooled'.*bert\.Body has embedded, hidden"):
        encoders.init(model)
    with pytest.raises(ConfigError, match="is a Classifier on a Encoder"):
        families.families()["bert"].table(model)
    with pytest.raises(ConfigError, match=r"model\.classes=0"):
        encoders.init(bert.Tagger(bert.Body(bert.SIZES["tiny"]), classes=0))
