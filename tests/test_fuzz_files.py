"""Fuzzing of what a run finds on the disk: safetensors headers, manifests, the experiment.json of a
run, config.json of a foreign folder. Whatever is there is read right, or refused with one line.
"""

import copy
import functools
import json
import math
import os
import re

import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from flaxlm import manifest, safetensors
from flaxlm.convert.families import families, family_of_model
from flaxlm.convert.folder import read_folder, write_folder
from flaxlm.errors import DataError, UserError
from flaxlm.overrides import check_same_run, to_json
from flaxlm.rebuild import rebuild
from flaxlm.weights import read_weights
from tests import fuzz, tiny

# safetensors

DTYPES = ["F32", "F16", "BF16", "BOOL", "U8", "I64", "F8_E4M3", "f32", "", None, 4, ["F32"]]
HUGE = [2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1, -(2**63)]


@st.composite
def headers(draw):
    """A header whose entries are nearly right, and the bytes that would follow it."""
    header, end = {}, 0
    for name in draw(st.lists(st.text(max_size=4), max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = math.prod(shape) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    for name in list(header):
        entry = header[name]
        kind = draw(st.sampled_from(["right"] * 3 + ["dtype", "shape", "offsets", "any", "huge"]))
        if kind == "dtype":
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        elif kind == "shape":
            entry["shape"] = draw(st.lists(st.integers(-1, 9) | st.sampled_from(HUGE), max_size=40))
        elif kind == "offsets":
            entry["data_offsets"] = draw(
                st.lists(st.integers(-4, end + 8) | st.sampled_from(HUGE), max_size=3)
            )
        elif kind == "huge":  # agrees with itself, not with the file
            count = draw(st.sampled_from(HUGE))
            entry |= {"shape": [count], "data_offsets": [0, 4 * count]}
        elif kind == "any":
            header[name] = draw(fuzz.JSON)
    if draw(st.integers(0, 5)) == 0:
        header["__metadata__"] = draw(fuzz.JSON)
    return header, bytes(range(256)) * (1 + end // 256), end


@fuzz.inputs(500)
@given(headers(), st.data())
def test_any_header_is_true_or_refused(tmp_path_factory, made, data):
    header, content, end = made
    content = content[: max(0, end + data.draw(st.sampled_from([0, 0, 0, -1, 1, 4])))]
    text = json.dumps(header).encode()
    claimed = data.draw(st.sampled_from([len(text)] * 6 + [0, 8, len(text) - 1, 10**8, 2**63]))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.unlink(missing_ok=True)  # an array of the last input may still be mapped
    path.write_bytes(claimed.to_bytes(8, "little") + text + content)
    with fuzz.refused() as errors:
        found = safetensors.read(path)
    if errors:
        assert str(path) in str(errors[0])
        return
    assert sum(array.nbytes for array in found.values()) == len(content)
    assert found.keys() == header.keys() - {"__metadata__"}
    for name, array in found.items():
        begin, finish = header[name]["data_offsets"]
        assert list(array.shape) == header[name]["shape"]
        assert array.tobytes() == content[begin:finish]


# Manifests


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(folder, what its manifest says) of something like a checkpoint."""
    folder = tmp_path_factory.mktemp("manifest") / "20"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "a").write_bytes(b"12345")
    (folder / "b").write_bytes(b"")
    facts = {
        "step": 20,
        "identity": {"experiment": to_json(tiny.EXPERIMENT), "vocab": "a" * 64, "data": "b" * 64},
        "tree": {"params/x": ([2, 3], "float32"), "step": ([], "int32")},
        "mesh": {"data": 8},
    }
    manifest.write(folder, facts)
    found = json.loads((folder / manifest.NAME).read_text())
    del found["checksum"]
    return folder, found


ODD_FILES = st.sampled_from([
    {"bytes": 0, "crc32": "0" * 64}, {"bytes": 5, "crc32": None}, {"bytes": -1, "crc32": ""},
    {"bytes": 10**30, "crc32": "x"}, {"bytes": True, "crc32": ""}, {"bytes": 5.0, "crc32": ""}, {},
])  # fmt: skip
ODD_NAMES = st.sampled_from(
    ["../20/b", "/dev/zero", "/dev/stdin", "..", ".", "", "state", "a\0b", "x" * 5000, "state/a/b"]
)


@fuzz.inputs(400)
@given(st.data())
def test_any_manifest_is_true_or_damaged(checkpoint, data):
    folder, right = checkpoint
    found = data.draw(fuzz.damaged(right))
    if data.draw(st.integers(0, 2)) == 0 and isinstance(found.get("files"), dict):
        found["files"][data.draw(ODD_NAMES)] = data.draw(ODD_FILES)
    text = json.dumps(found | {"checksum": manifest._checksum(found)})
    if data.draw(st.integers(0, 9)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    (folder / manifest.NAME).write_text(text, encoding="utf-8", errors="surrogatepass")
    identity, tree = right["identity"], {k: tuple(v) for k, v in right["tree"].items()}
    with fuzz.refused():
        try:
            read = manifest.read(folder, "step", "identity", "tree", "mesh")
            manifest.check_same(read, identity=identity, tree=tree, name="checkpoint 20")
            manifest.verify(folder, read)
        except manifest.Damaged as damage:
            assert "\n" not in str(damage) and len(str(damage)) < 2000
            return
        # What passed is the run's own.
        found = {k: v for k, v in read["identity"].items() if v is not None}
        assert found | {"experiment": None} == identity | {"experiment": None}
        assert set(read["files"]) <= set(right["files"])


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../20/b": {"bytes": 0, "crc32": "00000000"}}},
        {"files": {"/dev/zero": {"bytes": 0, "crc32": "00000000"}}},
        {"files": {"pipe": {"bytes": 0, "crc32": "00000000"}}},
        {"files": {"b\n": {"bytes": 0, "crc32": "00000000"}}},
        {"files": {"b": {"bytes": 10**400, "crc32": "00000000"}}},
        {"files": {"b": {}}},
        {"files": []},
        {"step": "20"},
        {"tree": {"a": 1}},
        {"mesh": None},
        {"identity": []},
    ],
)
def test_a_manifest_that_matches_its_checksum_is_not_believed(checkpoint, change):
    folder, right = checkpoint
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    found = right | change
    found["checksum"] = manifest._checksum(found)
    (folder / manifest.NAME).write_text(json.dumps(found))
    with fuzz.refused(), pytest.raises(manifest.Damaged):
        manifest.verify(folder, manifest.read(folder, "step", "identity", "tree", "mesh"))


# experiment.json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, to_json(tiny.EXPERIMENT)


@fuzz.inputs(300)
@given(st.data())
def test_any_experiment_json_is_another_or_refused(run, data):
    folder, right = run
    text = data.draw(fuzz.scratched(right))
    (folder / "experiment.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with fuzz.refused() as errors:
        read_weights(folder)
    assert errors  # it has no checkpoint
    try:
        before = json.loads(text)
    except ValueError:
        return
    with fuzz.refused():
        check_same_run(before, right, directory=folder)
    if not isinstance(before, dict) or "model" not in before:
        return
    with fuzz.refused() as errors:
        model = rebuild(before["model"], where="model")
    if not errors:
        assert rebuild(to_json(model), where="again") == model


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data",), None, "data.vocabulary.sentinels is no number"),
        (("data", "vocabulary"), [], "data.vocabulary.sentinels is no number"),
        (("model", "size", "depth"), "2", "model.size.depth is '2', expected int"),
        (("model", "size", "dropout"), 10**400, "model.size.dropout is '1000"),
    ],
)
def test_an_experiment_json_is_not_believed(run, path, value, message):
    folder, right = run
    described = node = copy.deepcopy(right)
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    (folder / "experiment.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=re.escape(message)):
        read_weights(folder)


# config.json


@functools.cache
def foreign() -> dict[str, tuple[dict, dict]]:
    """{family: (config.json, tensors)} of a tiny model of every family that is read."""
    from tests.test_convert import CASES, random_params

    found = {}
    for name, (model, part) in CASES.items():
        family = name.partition(".")[0]
        if part or family in found or not families()[family].MODEL_TYPES:
            continue
        found[family] = (model, random_params(model))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, (model, params) in foreign().items():
        folder = tmp_path_factory.mktemp(name)
        write_folder(folder, model, params, None)
        made[name] = folder, json.loads((folder / "config.json").read_text())
    return made


@fuzz.inputs(300)
@given(st.data())
def test_any_config_is_the_models_or_refused(folders, data):
    name = data.draw(st.sampled_from(sorted(folders)))
    folder, right = folders[name]
    values = fuzz.JSON | st.sampled_from(["gelu", "relu", "768", [], {}, [""], True, 0.5])
    config = data.draw(fuzz.damaged(right, values))
    if data.draw(st.booleans()):
        config |= {"auto_map": {"AutoModel": "evil--modeling.Model"}, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(config))
    with fuzz.refused() as errors:
        model, params = read_folder(folder)
    if errors:
        assert str(folder) in str(errors[0]), errors
        return
    # What is read has all its parameters, of the shapes of its own table.
    entries = {entry.ours for entry in family_of_model(model).table(model)}
    assert set(flatten_dict(params, sep="/")) == entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": []}, "architectures is '[]', not a list of names"),
        ({"num_hidden_layers": 10**9}, "has 1000000000 layers, there are "),
        ({"num_hidden_layers": 10**12}, "size.depth is 1000000000000 (int), expected int below 2"),
        ({"hidden_size": "768"}, "wrong type"),
        ({"num_attention_heads": 0}, "config.json: "),
        ({"layer_norm_eps": float("nan")}, "is nan (float), expected float"),
    ],
)
def test_claims_of_a_config_are_checked_first(folders, change, message):
    folder, right = folders["bert"]
    (folder / "config.json").write_text(json.dumps(right | change))
    with fuzz.refused(), pytest.raises(UserError, match=re.escape(message)):
        read_folder(folder)
