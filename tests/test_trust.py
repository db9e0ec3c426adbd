"""Folders full of code are read as data. docs/security.md is the page to it."""

import json
import pickle
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxlm import manifest, named, train
from flaxlm.convert import __main__ as convert
from flaxlm.convert.check import random_batch
from flaxlm.convert.folder import write_folder
from flaxlm.data.sources import documents
from flaxlm.data.spec import Source
from flaxlm.errors import Refused
from flaxlm.models import t5
from flaxlm.weights import read_weights, write_run

MODEL = t5.Model(t5.Size(1, 16, 24, 2, head_dim=8, vocab=300))


@pytest.fixture(scope="module")
def params():
    batch = random_batch(MODEL, seed=0)
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), batch, train=False)["params"])
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), named.unbox(shapes))


class Trap:
    """Unpickled, it runs what it was made with."""

    def __init__(self, path: Path):
        self.text = f"open({str(path)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.text,)


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """`trapped(folder)` fills a folder with code that leaves a mark when it runs, in all the places
    that some program executes, and puts it where Python imports from; the mark must not be there
    at the end.
    """
    mark = tmp_path / "code was run"

    def fill(folder: Path) -> None:
        code = Trap(mark).text
        for name in (
            "modeling_evil.py", "tokenization_evil.py", "configuration_evil.py", "experiment.py",
            "evil.py", "evil_module.py", "__init__.py", "conftest.py", "sitecustomize.py",
            "checkpoints/hook.py",
        ):  # fmt: skip
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(code)
        for name in (
            "pytorch_model.bin", "training_args.bin", "optimizer.pt", "evil.pkl", "tf_model.h5",
            "flax_model.msgpack", "vocab.pkl", "model.ckpt",
        ):  # fmt: skip
            (folder / name).write_bytes(pickle.dumps(Trap(mark)))
        (folder / "config.yaml").write_text("!!python/object/apply:os.system ['touch x']\n")
        with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
            archive.add(folder / "evil.py", "../outside.py")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.chdir(folder)

    yield fill
    assert not mark.exists()
    assert not (tmp_path / "outside.py").exists()


def test_the_trap_works(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


REMOTE = {
    "auto_map": {"AutoConfig": "configuration_evil.Config", "AutoModel": "modeling_evil.Model"},
    "trust_remote_code": True,
    "custom_pipelines": {"evil": {"impl": "evil.Pipeline"}},
    "_name_or_path": "evil/evil",
    "torch_dtype": "evil.dtype",
}


@pytest.mark.faults(24)
def test_a_foreign_folder_runs_no_code(tmp_path, params, trapped, capsys, fault_row):
    folder = tmp_path / "foreign"
    folder.mkdir()
    write_folder(folder, MODEL, params, None)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | REMOTE))
    trapped(folder)
    run = tmp_path / "run"
    assert convert.main(["--from-hf", str(folder), "--to", str(run)]) == 0, capsys.readouterr()
    np.testing.assert_array_equal(read_weights(run).params["embed"]["table"][:300], 1)
    assert not list(run.glob("**/*.py")) + list(run.glob("**/*.bin"))
    fault_row(
        injected="code in .py, .bin, .pkl, .pt, .tar.gz and .yaml files of a Hugging Face folder, "
        "`auto_map` and `trust_remote_code` in its config.json",
        happened="safetensors and config.json are read, the rest is not opened; nothing ran",
        exit_code=0,
    )


@pytest.mark.faults(24)
def test_pickled_weights_alone_are_refused(tmp_path, params, trapped, capsys, fault_row):
    folder = tmp_path / "foreign"
    folder.mkdir()
    write_folder(folder, MODEL, params, None)
    (folder / "model.safetensors").unlink()
    trapped(folder)
    assert convert.main(["--from-hf", str(folder), "--to", str(tmp_path / "run")]) == 77
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not read: such files can run code" in line and "safe_serialization=True" in line
    assert not (tmp_path / "run").exists()
    fault_row(
        injected="a folder whose weights are pickled: .bin, .pt, .pkl, .ckpt, .h5, .msgpack",
        happened="refused unread, with the line of transformers that makes safetensors of it",
        exit_code=77,
    )


@pytest.mark.faults(24)
def test_a_run_from_elsewhere_runs_no_code(tmp_path, params, trapped, fault_row, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, MODEL, params, None)
    trapped(folder)
    np.testing.assert_array_equal(read_weights(folder).params["embed"]["table"], 1)
    assert convert.main(["--run", str(folder), "--to-hf", str(tmp_path / "hf")]) == 0
    described = json.loads((folder / "model.json").read_text())
    for name in ("evil.Model", "os.system", "flaxlm.models.evil.Model", "evil_module.Model"):
        (folder / "model.json").write_text(json.dumps(described | {"class": name}))
        manifest.write(folder, {"sentinels": 0})
        assert convert.main(["--run", str(folder), "--to-hf", str(tmp_path / "hf2")]) in (65, 78)
    assert "what a file names is not executed" in capsys.readouterr().err
    fault_row(
        injected="a run directory whose model.json names `os.system` or a module beside it",
        happened="only classes of flaxlm itself are looked up; the name is refused",
        exit_code=78,
    )


@pytest.mark.faults(24)
def test_a_data_set_names_no_code(tmp_path, trapped, fault_row):
    """TFDS imports the module of every class that features.json names."""
    folder = tmp_path / "data"
    folder.mkdir()
    trapped(folder)
    (folder / "dataset_info.json").write_text('{"name": "notes", "version": "1.0.0"}')
    for key in ("pythonClassName", "python_class_name", "type"):
        (folder / "features.json").write_text(
            json.dumps({"featuresDict": {"features": {"text": {key: "evil_module.Text"}}}})
        )
        with pytest.raises(Refused, match=r"'evil_module.Text' is not of TFDS itself"):
            list(documents(Source(f"tfds:{folder}")))
    fault_row(
        injected="a TFDS folder whose features.json names a class of a module beside it",
        happened="refused before TFDS would import the module",
        exit_code=77,
    )


@pytest.mark.faults(24)
def test_the_one_file_that_is_executed_is_named(tmp_path, capsys, fault_row):
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit(3)\n")
    assert train.main(["--experiment", str(tmp_path / "min.py")]) == 78
    assert train.main(["--experiment", str(path)]) == 78
    assert f"flaxlm: {path}:1: SystemExit: 3" in capsys.readouterr().err
    fault_row(
        injected="an experiment file from anywhere",
        happened="it is the user's choice and is executed; the run prints its path at start",
        exit_code=0,
    )
