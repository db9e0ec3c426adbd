"""Fine-tuning from end to end: learned, resumed, warm started, answered."""

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

from flaxlm import evaluate
from flaxlm.errors import ConfigError
from flaxlm.experiment import Restore, load
from flaxlm.optim import AdamW, Constant, Rate
from flaxlm.plan import make_plan
from flaxlm.sharding import Mesh, abstract_layout
from flaxlm.tasks.base import find
from flaxlm.tasks.baselines import majority
from flaxlm.train import main, train
from flaxlm.weights import read_weights
from tests import equal, kills, runs, tasks

EXPERIMENT = runs.ROOT / "tests" / "experiments" / "tiny_polarity.py"


def with_files(uri: str, directory, **changes):
    """The experiment on these files, `changes` made in `run`."""
    loaded = load(str(EXPERIMENT))
    data = loaded.experiment.data
    data = dataclasses.replace(
        data,
        sources=(dataclasses.replace(data.sources[0], uri=uri),),
        held_out=(dataclasses.replace(data.held_out[0], uri=uri),),
    )
    run = dataclasses.replace(loaded.experiment.run, directory=str(directory), **changes)
    return dataclasses.replace(
        loaded, experiment=dataclasses.replace(loaded.experiment, data=data, run=run)
    )


def argv(uri: str, directory, *more: str) -> list[str]:
    return [
        "--experiment", str(EXPERIMENT), f"--data.sources.0.uri={uri}",
        f"--data.held_out.0.uri={uri}", f"--run.directory={directory}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(uri of the files, run directory) of the experiment."""
    folder = tmp_path_factory.mktemp("tuned")
    patch = pytest.MonkeyPatch()
    patch.setenv("FLAXLM_CACHE", str(folder / "cache"))
    uri = tasks.polarity_files(folder / "files")
    assert train(with_files(uri, folder / "run")) == 0
    yield uri, folder / "run"
    patch.undo()


def test_it_learns_and_measures(tuned):
    """Eight words decide; whoever reads them is right."""
    _, run = tuned
    lines = runs.metrics(run, "eval")
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1]["accuracy"] > 95
    assert math.isclose(lines[-1]["accuracy"], 100 * lines[-1]["right"], rel_tol=1e-6)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["accuracy"] == lines[-1]["accuracy"]
    best = max(lines, key=lambda line: line["accuracy"])["step"]
    kept = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()}
    assert kept == {40, best}


def test_evaluate_answers_a_split(tuned, tmp_path, capsys):
    uri, run = tuned
    task = uri.removeprefix("task:")
    arguments = ["--run", str(run), "--task", task, "--split", "train[80%:]"]
    assert not evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(
        max(line["accuracy"] for line in runs.metrics(run, "eval"))
    )
    report = (tmp_path / "out" / "report.txt").read_text()
    assert "right (down), answered (across)" in report and report.strip() in capsys.readouterr().out
    examples = find("sentences/polarity").read("train[80%:]", uri.partition("@")[2])
    answers = (tmp_path / "out" / "answers").read_text().splitlines()
    assert len(answers) >= len(examples) == result["examples"]
    task, place = find("sentences/polarity"), uri.partition("@")[2]
    usual = majority(task, task.read("train[:80%]", place), examples)
    assert result["baseline"] == task.metrics(usual, examples)["accuracy"] < 70
    assert f"; {result['baseline']:.4f} by the commonest answer" in report


def test_evaluate_says_what_it_cannot_do(tuned, tmp_path):
    _, run = tuned
    with pytest.raises(ConfigError, match=r"ner/wnut17 is of the form Tags"):
        evaluate.evaluate(run, "ner/wnut17@x", "train", tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    text = json.loads((run / "experiment.json").read_text())
    text["data"]["packing"] = "stream"
    (other / "experiment.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match="learned from text"):
        evaluate.evaluate(other, "sentences/polarity", "train", tmp_path)


def test_it_starts_from_what_was_learned_before(tuned, tmp_path):
    """The encoder alone is taken; with the rate 0 it stays as it was."""
    uri, run = tuned
    loaded = with_files(uri, tmp_path / "run", steps=2, eval_every=0, save_every=0, keep_best="")
    start = (Restore(str(run), take="encoder", into="encoder", without=("encoder/pooler",)),)
    optimizer = AdamW(Constant(1e-2), decay=0.1, rates=(Rate("encoder", 0.0),))
    experiment = dataclasses.replace(loaded.experiment, start=start, optimizer=optimizer)
    assert train(dataclasses.replace(loaded, experiment=experiment)) == 0
    before, after = read_weights(run).flat, read_weights(tmp_path / "run").flat
    for name, array in after.items():
        same = name.startswith("encoder/") and "pooler" not in name
        assert np.array_equal(before[name], array) == same, name


def test_metrics_of_a_task_need_all_of_it(tuned, tmp_path):
    uri, _ = tuned
    loaded = with_files(uri, tmp_path, eval_batches=2)
    layout = abstract_layout(Mesh(), 1)
    with pytest.raises(ConfigError, match=r"run\.eval_batches=2: .* make it 0"):
        make_plan(loaded.experiment, layout, loaded.experiment.data.vocabulary.blank())
    loaded = with_files(uri, tmp_path, keep_best="max f1")
    with pytest.raises(ConfigError, match="the evaluation has no 'f1'"):
        make_plan(loaded.experiment, layout, loaded.experiment.data.vocabulary.blank())


def test_a_head_of_another_width_is_refused_before_the_first_step(tuned, tmp_path):
    uri, _ = tuned
    experiment = with_files(uri, tmp_path).experiment
    model = dataclasses.replace(experiment.model, classes=3)
    wrong = dataclasses.replace(experiment, model=model)
    with pytest.raises(ConfigError, match="the model's head has 3 outputs, Classification reads 2"):
        make_plan(wrong, abstract_layout(Mesh(), 1), experiment.data.vocabulary.blank())


@pytest.mark.slow
def test_a_run_that_is_killed_is_the_straight_run(tuned, tmp_path):
    """On eight devices, with the evaluation's answers gathered from all of them."""
    uri, run = tuned
    cache = run.parent / "cache"
    numbers = ["--run.steps=24", "--run.save_every=4", "--run.eval_every=8", "--run.keep_best=",
               "--run.keep=9", "--run.log_every=1", "--mesh.fsdp=2"]  # fmt: skip

    def start(name):
        return lambda: [runs.start(argv(uri, tmp_path / name, *numbers), cache, devices=8)]

    kills.run(start("straight"))
    found = kills.run_killed(start("killed"), tmp_path / "killed", steps=24, kills=1, opening=5)
    assert found
    straight, killed = (equal.fingerprint(tmp_path / name, 24) for name in ("straight", "killed"))
    assert straight == killed
    evals = [runs.metrics(tmp_path / name, "eval") for name in ("straight", "killed")]
    values = [[(e["step"], e["accuracy"], e["nll"]) for e in part] for part in evals]
    assert values[0] == values[1] and len(values[0]) == 3


def test_rates_of_parts_and_layers():
    axes = {
        "encoder/embed/table": ("vocab", "embed"),
        "encoder/layers/mlp/in": ("layers", "embed", "mlp"),
        "encoder/pooler/kernel": ("embed", "width"),
        "head/kernel": ("embed", "types"),
    }
    shapes = [(4, 2), (3, 2, 2), (2, 2), (2, 2)]
    optimizer = AdamW(
        Constant(1.0), clip=0.0, layer_decay=0.5, rates=(Rate("encoder/pooler", 0.1),)
    )
    params = {}
    for name, shape in zip(axes, shapes, strict=True):
        at = params
        *parts, last = name.split("/")
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = np.ones(shape, np.float32)

    @jax.jit
    def updates():
        every = (AdamW(Constant(1.0), clip=0.0), optimizer)
        steps = [some.build(axes, 1) for some in every]
        return [tx.update(params, tx.init(params), params)[0] for tx in steps]

    ratio = jax.tree.map(lambda plain, found: found / plain, *updates())
    assert np.allclose(ratio["encoder"]["embed"]["table"], 0.5**5)
    layers = np.asarray(ratio["encoder"]["layers"]["mlp"]["in"])[:, 0, 0]
    assert np.allclose(layers, [0.5**4, 0.5**3, 0.5**2])
    assert np.allclose(ratio["encoder"]["pooler"]["kernel"], 0.1)
    assert np.allclose(ratio["head"]["kernel"], 1.0)
    with pytest.raises(ConfigError, match=r"no parameters 'encoder/pool'.* encoder, head"):
        AdamW(Constant(1.0), rates=(Rate("encoder/pool", 0.1),)).build(axes, 1)
    with pytest.raises(ConfigError, match=r"optimizer\.layer_decay=0"):
        AdamW(Constant(1.0), layer_decay=0.0)


def test_layers_wake_from_the_top_down():
    """One more after every two steps, the head from the first on; all in one program."""
    axes = {
        "encoder/embed/table": ("vocab", "embed"),
        "encoder/positions/table": ("positions", "embed"),
        "encoder/layers/mlp/in": ("layers", "embed", "mlp"),
        "encoder/norm/scale": ("width",),
        "head/kernel": ("embed", "types"),
    }
    shapes = [(4, 2), (3, 2), (3, 2, 2), (2,), (2, 2)]
    params = {name: np.ones(shape, np.float32) for name, shape in zip(axes, shapes, strict=True)}
    tx = AdamW(Constant(0.01), decay=0.1, unfreeze=2).build(axes, 12)

    def step(carry, _):
        params, opt = carry
        updates, opt = tx.update(params, opt, params)
        return (optax.apply_updates(params, updates), opt), updates

    _, updates = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), length=12))()
    moved = {name: np.asarray(x).reshape(12, len(x[0]), -1).any(2) for name, x in updates.items()}
    first = {name: x.argmax(0).tolist() for name, x in moved.items()}
    assert first == {
        "encoder/embed/table": [8] * 4, "encoder/positions/table": [8] * 3,
        "encoder/layers/mlp/in": [6, 4, 2], "encoder/norm/scale": [0] * 2, "head/kernel": [0] * 2,
    }  # fmt: skip
    assert all(x[place:, row].all() for name, x in moved.items()
               for row, place in enumerate(first[name]))  # fmt: skip
    with pytest.raises(ConfigError, match=r"optimizer\.unfreeze=-1"):
        AdamW(Constant(1.0), unfreeze=-1)


def test_the_command_line_is_the_same(tuned, capsys):
    uri, _ = tuned
    assert not main([*argv(uri, "unused"), "--dry-run"])
    assert "head/kernel" in capsys.readouterr().out
