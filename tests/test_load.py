"""`flaxlm.load`: a run or a folder as a model that one calls; and what it refuses to believe."""

import dataclasses
import json
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxlm
from flaxlm import train
from flaxlm.convert.check import random_batch
from flaxlm.convert.folder import write_folder
from flaxlm.data import english
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import train_vocab
from flaxlm.errors import ConfigError, DataError, MissingInput, StorageError
from flaxlm.models import t5
from flaxlm.named import unbox
from flaxlm.nn.compute import Compute
from flaxlm.overrides import to_json
from flaxlm.rebuild import rebuild
from flaxlm.weights import read_weights, write_run
from tests import runs

MODEL = t5.Model(t5.Size(1, 16, 24, 2, head_dim=8, vocab=450))


@pytest.fixture(scope="module")
def vocab():
    return train_vocab(english.documents()[:20], Vocabulary(size=400, sentinels=20))


@pytest.fixture(scope="module")
def params():
    batch = random_batch(MODEL, seed=0)
    made = jax.jit(lambda: MODEL.init(jax.random.key(0), batch, train=False)["params"])()
    return jax.tree.map(np.asarray, unbox(made))


@pytest.fixture
def run(tmp_path, params, vocab):
    write_run(tmp_path, MODEL, params, vocab)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file, data_cache):
    """A training run of 4 steps that keeps averages."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXLM_CACHE", str(data_cache))
        argv = runs.arguments(text_file, directory, "--run.steps=4", "--optimizer.ema=0.5")
        assert train.main([*argv, "--mesh.data=8"]) == 0
    return directory


def test_a_converted_run_is_what_was_written(run, params, vocab):
    lm = flaxlm.load(run)
    assert lm.model == MODEL and lm.vocab.sha256 == vocab.sha256 and lm.vocab.size == vocab.size
    for name, array in flatten_dict(lm.params, sep="/").items():
        np.testing.assert_array_equal(array, flatten_dict(params, sep="/")[name])


def test_outputs_are_the_models(run, params):
    lm, batch = flaxlm.load(run), random_batch(MODEL, seed=1)
    found = lm(batch)
    expected = MODEL.apply({"params": params}, batch, train=False)
    assert found.keys() == {"logits", "hidden", "encoder"}
    assert all(isinstance(array, np.ndarray) for array in found.values())
    assert found["logits"].shape == (2, 12, 450) and found["logits"].dtype == np.float32
    logits = expected["logits"].logits()[..., :450]
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(found["encoder"], expected["encoder"], atol=1e-5)
    wide = {name: array.astype(np.int64) for name, array in batch.items()}
    np.testing.assert_array_equal(lm(wide)["logits"], found["logits"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": None}, "no feature is named 'tokens'"),
        ({"word": np.zeros((2, 12), np.int32)}, "'word'.*no feature has that name"),
        ({"tokens": np.zeros(12, np.int32)}, r"'tokens'\] has shape \[12\]"),
        ({"tokens": np.full((2, 12), 450)}, r"'tokens'\] has values from 450 to 450"),
        ({"tokens": np.zeros((2, 12))}, r"'tokens'\] is float64, not int32"),
        ({"segments": np.ones((2, 11), np.int32)}, "length is 12 in 'tokens', 11 in 'segments'"),
        ({"segments": np.ones((3, 12), np.int32)}, "batch is 2 in 'tokens', 3 in 'segments'"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(run, change, message):
    batch = random_batch(MODEL, seed=1) | change
    batch = {name: array for name, array in batch.items() if array is not None}
    with pytest.raises((MissingInput, DataError), match=message):
        flaxlm.load(run)(batch)


def test_a_batch_of_texts(run, vocab):
    lm = flaxlm.load(run)
    batch = lm.batch(["the cost", "a<extra_id_0> c"], targets=["one", "<extra_id_0>two"])
    first = vocab.encode("the cost").tolist()
    assert batch["tokens"][0].tolist()[: len(first) + 1] == [*first, vocab.eos]
    assert vocab.sentinels[0] in batch["tokens"][1]
    np.testing.assert_array_equal(batch["segments"], batch["tokens"] != vocab.pad)
    start, *rest = batch["decoder_tokens"][0].tolist()
    assert start == vocab.pad and rest[: len(vocab.encode("one"))] == vocab.encode("one").tolist()
    assert batch["decoder_positions"][1].tolist() == list(range(len(batch["decoder_tokens"][1])))
    assert lm.batch(["a"], length=9)["tokens"].shape == (1, 9)
    with pytest.raises(ConfigError, match="length=1"):
        lm.batch(["a longer text"], length=1)
    pair = lm.batch(["a"], ["b"])["tokens"][0].tolist()
    assert pair == [*vocab.encode("a"), vocab.eos, *vocab.encode("b"), vocab.eos]
    assert lm(batch)["logits"].shape[:2] == batch["decoder_tokens"].shape


def test_a_training_run_gives_its_averages(trained):
    lm, last = flaxlm.load(trained), read_weights(trained)
    assert last.step == 4 and lm.vocab.sha256 == last.vocab.sha256
    assert lm.vocab.size == 500  # 400 pieces, 100 sentinels
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(trained / "checkpoints" / "4" / "state")
    found = np.asarray(lm.params["embed"]["table"])
    assert not np.array_equal(found, state["params"]["embed"]["table"])
    averages = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["opt"])
        if jax.tree_util.keystr(path).endswith("['params']['embed']['table']")
    ]
    assert len(averages) == 1
    np.testing.assert_array_equal(found, averages[0])


def test_a_training_run_goes_to_hugging_face(trained, tmp_path, capsys):
    from flaxlm.convert import __main__ as convert

    assert convert.main(["--run", str(trained), "--to-hf", str(tmp_path / "hf")]) == 0
    said = capsys.readouterr().out
    assert "at step 4" in said and "on a random batch: 0\n" in said
    run, folder = flaxlm.load(trained), flaxlm.load(tmp_path / "hf")
    batch = run.batch(["the cost of a list"], targets=["is small"])
    again = folder.batch(["the cost of a list"], targets=["is small"])
    for name in batch:
        np.testing.assert_array_equal(batch[name], again[name])
    np.testing.assert_array_equal(run(batch)["logits"], folder(batch)["logits"])


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(trained, tmp_path, caplog):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    steps = sorted(int(path.name) for path in (copy / "checkpoints").iterdir())
    victim = max((copy / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert read_weights(copy).step == steps[-2]
    assert "4 is damaged" in caplog.text
    assert sorted(int(path.name) for path in (copy / "checkpoints").iterdir()) == steps
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(MissingInput, match="no checkpoint yet"):
        read_weights(copy)


def test_a_damaged_run_is_refused(run):
    path = run / "params.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="other content"):
        flaxlm.load(run)


def test_nothing_of_the_kind(tmp_path):
    with pytest.raises(MissingInput, match="neither a run directory"):
        flaxlm.load(tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        flaxlm.load(tmp_path / "none")


def test_a_folder_without_tokenizer(tmp_path, params, caplog):
    write_folder(tmp_path, MODEL, params, None)
    lm = flaxlm.load(tmp_path)
    assert lm.vocab is None
    with pytest.raises(MissingInput, match="no vocabulary"):
        lm.batch(["a"])
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    assert flaxlm.load(tmp_path).vocab is None and "without a vocabulary" in caplog.text


def test_computing_is_asked_for(run):
    assert flaxlm.load(run).model.compute == Compute()
    lm = flaxlm.load(run, compute=Compute(dtype="bfloat16"))
    assert lm(random_batch(MODEL, seed=0))["hidden"].dtype.name == "bfloat16"


class Own(nn.Module):
    size: t5.Size
    compute: Compute = Compute()


@pytest.mark.parametrize(
    "name, message",
    [
        ("os.system", "not part of flaxlm"),
        ("builtins.eval", "not part of flaxlm"),
        ("flaxlm.train.main", "not part of flaxlm"),
        ("flaxlm.models.t5.partial", "has no flaxlm.models.t5.partial"),
        ("flaxlm.models.t5.jax", "has no"),
        ("flaxlm.models.t5.relu", "has no"),
        ("flaxlm.models.none.Model", "has no"),
        ("flaxlm.models.t5.__class__", "has no"),
        ("flaxlm.models..os.system", "not part of flaxlm"),
        ("", "not part of flaxlm"),
        (7, "not part of flaxlm"),
        (f"{__name__}.Own", "load\\(PATH, model=...\\)"),
    ],
)
def test_no_code_that_a_file_names_is_executed(name, message):
    with pytest.raises((ConfigError, DataError), match=message):
        rebuild({"class": name, "size": {}}, where="here")


def test_a_model_of_ones_own_is_given(run, params):
    described = to_json(MODEL) | {"class": f"{__name__}.Own"}
    (run / "model.json").write_text(json.dumps(described))
    from flaxlm import manifest

    manifest.write(run, {"sentinels": 20})
    with pytest.raises(ConfigError, match="model="):
        flaxlm.load(run)
    assert flaxlm.load(run, model=MODEL).model == MODEL


@pytest.mark.parametrize(
    "change, message",
    [
        ({"more": 1}, "no field 'more'"),
        ({"size": {"class": "flaxlm.models.t5.Size"}}, "cannot be made"),
        ({"size": {"class": "flaxlm.models.t5.Size", "depth": 0}}, "cannot be made"),
        ({"size": {"class": "flaxlm.models.t5.Tower"}}, "cannot be made"),
    ],
)
def test_a_description_that_does_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        rebuild({**to_json(MODEL), **change}, where="here")


def test_every_kind_of_value_is_rebuilt():
    from flaxlm.convert.families import families
    from flaxlm.models import xlnet
    from flaxlm.nn.positions import Rotary

    assert families()
    for model in (
        MODEL,
        MODEL.clone(compute=Compute(dtype="bfloat16", scan=False, remat="dots")),
        xlnet.Model(xlnet.SIZES["tiny"]),
    ):
        assert rebuild(json.loads(json.dumps(to_json(model))), where="here") == model
    described = to_json(MODEL)
    described["size"]["eps"] = "inf"
    assert rebuild(described, where="here").size.eps == float("inf")
    assert rebuild(to_json(Rotary(interleaved=True)), where="here") == Rotary(interleaved=True)
    older = to_json(MODEL)
    del older["size"]["buckets"]
    assert rebuild(older, where="here") == MODEL


def test_functions_are_rebuilt_where_they_are_declared():
    from flaxlm.models import xlnet

    fields = {f.name: f.type for f in dataclasses.fields(xlnet.Model)}
    assert "Callable" in str(fields["activation"]) or fields["activation"] is Callable
    for function in (xlnet.Model(xlnet.SIZES["tiny"]).activation,):
        described = to_json(xlnet.Model(xlnet.SIZES["tiny"], activation=function))
        assert rebuild(described, where="here").activation is function
    described["activation"] = "os.system"
    with pytest.raises(ConfigError, match=r"activation names 'os\.system'"):
        rebuild(described, where="here")
