"""Steps that are no good: left out on the devices, gone back from, given up; each injected."""

import json
import re
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import guard, optim, sharding, step, train
from flaxlm.divergence import Course, Retreat, Watch, not_finite, read_retreats
from flaxlm.errors import ConfigError, StorageError
from flaxlm.objectives.base import Term
from flaxlm.plan import Plan
from tests import runs
from tests.test_distributed import start
from tests.test_step import Embedder, TwoTerms, batch_of

POISON = runs.TINY.replace("tiny_span", "tiny_poison")
ROWS = 8  # of a batch


@dataclass(frozen=True)
class Poisoned(TwoTerms):
    """Rows whose weight in the text is 2 have what `how` says."""

    how: str = "loss"

    @property
    def terms(self):
        def nll(outputs, batch):
            bad = batch["text_weights"] > 1
            if self.how == "gradient":
                return outputs["nll"] + jnp.where(
                    bad, jnp.sqrt(jnp.where(bad, 0 * outputs["nll"], 1.0)), 0.0
                )
            value = jnp.nan if self.how == "loss" else jnp.inf
            return jnp.where(bad, value, outputs["nll"])

        return {**super().terms, "nll": Term(nll, "text_weights")}


def make(how="loss", *, accumulate=1, mesh=None, skip_spike=0.0):
    model, batch = Embedder(), batch_of()
    mesh = mesh or sharding.Mesh(data=1)
    layout = sharding.make_layout(mesh, jax.devices()[: mesh.data * mesh.fsdp])
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    with sharding.using(layout):
        boxed = jax.eval_shape(lambda: step.init_params(model, shapes, seed=0))
        axes = step.named.axes_of(boxed)
        tx = optim.AdamW(optim.Constant(1e-2), clip=0.0, ema=0.9).build(axes, 5)
        abstract = jax.eval_shape(step.make_init(model, tx, shapes, seed=0))
        plan = Plan(model, Poisoned(how), layout, {0: shapes}, abstract, axes, tx)
        return plan, step.jit_programs(plan, seed=0, accumulate=accumulate, skip_spike=skip_spike)


def poisoned(batch, row=5):
    weights = batch["text_weights"].copy()
    weights[row] = 2
    return {**batch, "text_weights": weights}


@pytest.mark.faults(14)
@pytest.mark.parametrize(
    ("how", "accumulate"), [("loss", 4), ("gradient", 1), ("gradient", 4), ("activation", 1)]
)
def test_a_bad_step_changes_nothing(how, accumulate, fault_row):
    """Not even the random numbers of the steps behind it."""
    plan, programs = make(how, accumulate=accumulate, mesh=sharding.Mesh(data=2, fsdp=2))
    clean = batch_of()
    seen = {}
    with sharding.using(plan.layout):
        for name, course in {"bad": [clean, poisoned(clean), clean], "good": [clean] * 3}.items():
            state, all_metrics = programs.init(), []
            for number, batch in enumerate(course):
                before = jax.device_get(state.replace(step=0, health=()))
                state, metrics = programs.step(state, jax.device_put(batch, plan.batch_shardings()))
                all_metrics.append(jax.device_get(metrics))
                after = jax.device_get(state.replace(step=0, health=()))
                if name == "bad" and number == 1:
                    jax.tree.map(np.testing.assert_array_equal, after, before)
            seen[name] = all_metrics
            assert not not_finite(state)
            assert int(state.step) == 3
    bad = seen["bad"][1]
    assert np.isfinite(bad["loss"]) == (how == "gradient")
    assert not np.isfinite(bad["grad_norm"]) or how != "gradient"
    verdicts = [metrics["evidence"]["verdict"].tolist() for metrics in seen["bad"]]
    assert verdicts == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert [int(metrics["skipped"]) for metrics in seen["bad"]] == [0, 1, 1]
    rows = bad["evidence"]["rows"]["nll"]
    finite = np.isfinite(rows)
    assert finite.all() if how == "gradient" else finite.tolist() == [i != 5 for i in range(16)]
    # The step behind it has the parameters of step 2 and the dropout of step 3.
    assert seen["bad"][2]["loss"] != seen["good"][1]["loss"]
    fault_row(
        injected=f"{'NaN' if how != 'activation' else 'infinite'} {how} in one row of a batch, "
        f"{accumulate} micro-batch(es), fsdp x data mesh",
        happened="the step changes neither parameters nor optimizer; it is counted and reported",
        exit_code=None,
    )


def test_the_guard_costs_no_donation():
    plan, programs = make()
    with sharding.using(plan.layout):
        state = programs.init()
        compiled = programs.step.lower(state, batch_of()).compile()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= held


def judged(losses, **options):
    """(verdicts, [N, 2] deviations) of steps with these losses and gradient norms of 1."""

    def one(health, loss):
        health, good, deviations = guard.judge(health, loss, jnp.float32(1), carry={}, **options)
        return health, (good, deviations)

    health, (good, deviations) = jax.lax.scan(one, guard.fresh(), jnp.array(losses, jnp.float32))
    return np.asarray(good), np.asarray(deviations), health


def test_spikes_stand_out_from_the_median():
    noise = np.random.default_rng(0).normal(3.0, 0.1, 400)
    noise[:50] += np.linspace(5, 0, 50)  # a run falls at first
    losses = noise.copy()
    losses[[200, 300]] = 6.0, np.nan
    losses[250:253] = 9.0  # outliers do not hide the next
    good, deviations, health = judged(losses, skip_spike=0.0)
    assert np.flatnonzero(~good).tolist() == [300]
    assert (deviations[: guard.WINDOW] == 0).all()
    high = deviations[:, 0] > 10
    assert np.flatnonzero(high).tolist() == [200, 250, 251, 252]
    assert 20 < deviations[200, 0] < 45 and np.isnan(deviations[300, 0])
    assert (int(health.seen), int(health.skipped), int(health.streak)) == (399, 1, 0)
    good, _, health = judged(losses, skip_spike=10.0)
    assert np.flatnonzero(~good).tolist() == [200, 250, 251, 252, 300]
    # A level that lasts is no spike for ever.
    good, _, _ = judged(np.concatenate([noise, noise + 4]), skip_spike=10.0)
    assert not good[400:440].any() and good[400 + guard.WINDOW // 2 + 8 :].all()
    # A plateau has no deviations to measure by.
    _, deviations, _ = judged([2.0] * 200 + [2.05], skip_spike=0.0)
    assert 2 < deviations[-1, 0] < 3


def test_policies_that_cannot_be():
    for name, value in {
        "skips": 0,
        "rollbacks": -1,
        "spike": -1.0,
        "skip_spike": float("nan"),
    }.items():
        with pytest.raises(ConfigError, match=rf"run\.divergence\.{name}="):
            guard.Divergence(**{name: value})


def test_a_course_leaves_out_what_was_turned_from():
    batches = SimpleNamespace(begins=lambda step: step in (0, 13), used=lambda steps: [steps])
    plain = Course(batches)
    assert [plain.number(i) for i in range(4)] == [0, 1, 2, 3]
    first = plain.turned(at=12, first=10, steps=[4, 8, 12])
    assert first.retreats == (Retreat(step=12, after=8, batch=12),)
    assert [first.number(i) for i in (0, 7, 8, 9)] == [0, 7, 12, 13]
    assert [i for i in range(12) if first.lands(i)] == [8]
    assert [i for i in range(12) if first.begins(i)] == [0, 9]
    assert first.used(9) == [13]
    # Bad again, and no checkpoint since: from the one before.
    second = first.turned(at=10, first=9, steps=[4, 8])
    assert second.retreats[-1] == Retreat(step=10, after=4, batch=14)
    assert [second.number(i) for i in (3, 4, 8)] == [3, 14, 18]
    # There is none before, then none at all.
    third = second.turned(at=6, first=5, steps=[4])
    assert third.retreats[-1] == Retreat(step=6, after=4, batch=16)
    last = Course(batches).turned(at=2, first=2, steps=[])
    assert last.retreats[-1] == Retreat(step=2, after=0, batch=2) and last.number(0) == 2
    # Bad later on: both hold.
    later = first.turned(at=20, first=18, steps=[12, 16])
    assert [later.number(i) for i in (7, 8, 15, 16)] == [7, 12, 19, 24]


def test_the_file_of_retreats(tmp_path):
    assert read_retreats(tmp_path) == []
    course = Course(None, (Retreat(step=12, after=8, batch=12),))
    course.write(tmp_path)
    assert read_retreats(tmp_path) == [{"step": 12, "after": 8, "batch": 12}]
    for text in ("{", '{"format": 2}', '{"format": 1, "retreats": [{"x": 1}]}', "[" * 100_000):
        (tmp_path / "divergence.json").write_text(text)
        with pytest.raises(StorageError, match=r"divergence\.json is damaged"):
            read_retreats(tmp_path)


def test_a_watch_is_two_steps_late():
    policy = guard.Divergence(skips=2, spike=10.0)
    lines, reported = [], []
    writer = SimpleNamespace(record=lambda *a, **k: lines.append((a, k)), say=lambda text: None)
    watch = Watch(policy, writer=writer, diagnostics=lambda *a: reported.append(a[:2]) or "file")
    verdicts = [[0, 1, 0, 0], [0, 1, 3, 11], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]
    found = []
    for number, verdict in enumerate(verdicts, 1):
        metrics = {name: jnp.float32(1) for name in ("loss", "grad_norm", "skipped")}
        watch.later(number, metrics | {"evidence": {"verdict": jnp.array(verdict, jnp.float32)}})
        found.append(watch.look(None))
    assert found == [0] * 6 and reported == [("spike", 2), ("skipped", 3)]
    assert watch.look(None, behind=0) == 6
    assert reported[2:] == [("skipped", 5), ("skipped", 6)]
    assert [kind["kind"] for _, kind in lines] == ["spike", "skipped", "skipped", "skipped"]


# Whole runs


def command(text, directory, *overrides):
    argv = runs.arguments(text, directory, "--run.steps=16", "--run.save_every=4", *overrides)
    argv[1] = POISON
    return argv


def poison(first, last, how="loss"):
    """Of whole batches, counted from 0."""
    rows = [f"--objective.first={first * ROWS}", f"--objective.last={last * ROWS}"]
    return [*rows, f"--objective.how={how}"]


@pytest.fixture(scope="module")
def gone_back(text_file, data_cache, tmp_path_factory):
    """A run whose batches 9 to 11 are poisoned: (directory, what it said)."""
    directory = tmp_path_factory.mktemp("gone_back")
    process = runs.start(command(text_file, directory, *poison(9, 12, "activation")), data_cache)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return directory, said


@pytest.mark.faults(14)
@pytest.mark.slow
def test_a_run_goes_back_and_is_the_one_without_the_data(
    gone_back, text_file, data_cache, tmp_path, fault_row
):
    directory, said = gone_back
    assert "step 12: left out, 3 in a row: loss inf" in said
    assert "step 12: back to step 8; batches 8 to 11 are left out from now on (retreat 1)" in said
    assert [line["step"] for line in runs.metrics(directory)] == list(range(1, 17))
    (line,) = runs.metrics(directory, "retreat")
    assert (line["step"], line["from"], line["batch"], line["retreats"]) == (8, 12, 12, 1)
    # A run over healthy data that never reads those batches.
    (tmp_path / "divergence.json").write_bytes((directory / "divergence.json").read_bytes())
    healthy = command(text_file, tmp_path, *poison(0, 0, "activation"))
    straight = runs.start(healthy, data_cache)
    output, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0 and "left out" not in output, output
    assert_same_run(directory, tmp_path)
    fault_row(
        injected="three batches in a row whose activations are infinite",
        happened="left out one by one; at the third the run goes back to the newest checkpoint and "
        "on behind them, bit for bit as if they were not in the data",
        exit_code=None,
    )


def assert_same_run(one, other):
    columns = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in runs.metrics(directory)]
        for directory in (one, other)
    ]
    assert columns[0] == columns[1]
    pairs = zip(runs.parameters(one, 16), runs.parameters(other, 16), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_the_diagnostics_name_rows_and_layers(gone_back):
    directory, _ = gone_back
    files = sorted(path.name for path in (directory / "diagnostics").iterdir())
    assert files == [f"step-{step}-batch-{step - 1}.json" for step in (10, 11, 12)]
    found = json.loads((directory / "diagnostics" / files[0]).read_text())
    assert (found["step"], found["event"], found["loss"]) == (10, "skipped", "inf")
    assert found["not_finite"] == ["nll"] and np.isfinite(found["terms"]["text_nll"])
    assert list(found["rows"]) == [str(row) for row in range(9 * ROWS, 10 * ROWS)]
    assert re.fullmatch(r"text:.*english\.txt, document \d+(, \d+)*", found["rows"]["72"])
    worst = found["worst"][0]
    assert worst["row"] in range(72, 80) and worst["losses"]["nll"] == "inf"
    assert "<extra_id_0>" in worst["input"] and worst["target"].startswith("<extra_id_0>")
    gradients, parameters = found["gradients"], found["parameters"]["norms"]
    assert gradients.keys() == parameters.keys()
    assert isinstance(gradients["encoder/layers/mlp/in"], list), "a norm for every layer"
    assert set(gradients.values() if False else map(str, gradients["encoder/layers/mlp/in"])) == {
        "nan"
    }
    assert all(np.isfinite(parameters["encoder/layers/mlp/in"]))


@pytest.mark.slow
@pytest.mark.faults(14)
def test_killed_after_going_back_reads_the_same_data(
    gone_back, text_file, data_cache, tmp_path, fault_row
):
    """It stops mid-streak, and again right behind the retreat."""
    argv = command(text_file, tmp_path, *poison(9, 12, "activation"))
    for needle, number in (('"step": 10, "kind": "skipped"', signal.SIGTERM),
                           ('"kind": "retreat"', signal.SIGKILL)):  # fmt: skip
        process = runs.start(argv, data_cache)
        file = tmp_path / "metrics.jsonl"
        while process.poll() is None:
            if file.exists() and needle in file.read_text():
                process.send_signal(number)
                break
        process.communicate(timeout=120)
    process = runs.start(argv, data_cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_run(tmp_path, gone_back[0])
    fault_row(
        injected="SIGTERM among bad steps, SIGKILL after the run has gone back",
        happened="the next start has the same streak and the same data: the same run, bit for bit",
        exit_code=None,
    )


@pytest.mark.slow
@pytest.mark.faults(14)
def test_two_processes_go_back_together(text_file, data_cache, tmp_path, fault_row):
    argv = [*command(text_file, tmp_path, *poison(9, 12, "gradient")), "--mesh.data=2"]
    processes = start(argv, data_cache, count=2, devices=1)
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [line["batch"] for line in runs.metrics(tmp_path, "retreat")] == [12]
    assert [line["step"] for line in runs.metrics(tmp_path)] == list(range(1, 17))
    rows = []
    for process in ("", "-process-1"):
        path = tmp_path / "diagnostics" / f"step-10-batch-9{process}.json"
        found = json.loads(path.read_text())
        assert found["grad_norm"] == "nan" and found["not_finite"] == []
        rows += map(int, found["rows"])
    assert rows == list(range(72, 80))
    fault_row(
        injected="three batches in a row with NaN gradients, two processes",
        happened="both leave them out and go back alike, each writes about its own rows",
        exit_code=None,
    )


@pytest.mark.faults(14)
def test_a_run_that_goes_on_diverging_stops_with_70(
    text_file, data_cache, tmp_path, capsys, monkeypatch, fault_row
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    argv = command(
        text_file, tmp_path, *poison(5, 100, "gradient"), "--run.divergence.rollbacks=1",
        "--run.divergence.skips=2", "--run.accumulate=2", "--mesh.data=4", "--mesh.fsdp=2",
        "--run.eval_every=2", "--data.batch=16",
    )  # fmt: skip
    argv = [word.replace("last=800", "last=1600").replace("first=40", "first=80") for word in argv]
    assert train.main(argv) == 70
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()[-1:]
    assert re.fullmatch(
        r"flaxlm: step 6: 2 step\(s\) in a row were no good, loss [\d.]+, grad_norm nan\. The run "
        r"has gone back 1 time\(s\) and stops; checkpoint 4 is from before; .*"
        r"diagnostics has the rows\. .*--run\.divergence\.rollbacks=2 leaves out these .*",
        line,
    ), line
    assert "step 7: back to step 4" in said.out
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        assert all(
            np.isfinite(x).all() for x in runs.parameters(tmp_path, int(checkpoint.name))
            if x.dtype.kind == "f"
        )  # fmt: skip
    fault_row(
        injected="NaN gradients, finite losses, in all batches from one on; 2 micro-batches, 8 "
        "devices",
        happened="left out, gone back as often as run.divergence.rollbacks, then one line",
        exit_code=70,
        lost="what came after the last checkpoint",
    )


def test_a_state_that_is_not_finite_is_never_saved(
    text_file, data_cache, tmp_path, capsys, monkeypatch
):
    """The update itself overflows: loss and gradient of its step are fine."""
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    make_step = step.make_train_step

    def overflowing(*args, **options):
        inner = make_step(*args, **options)

        def outer(state, batch):
            state, metrics = inner(state, batch)
            scale = jnp.where(state.step == 4, jnp.inf, 1.0)
            return state.replace(params=jax.tree.map(lambda x: x * scale, state.params)), metrics

        return outer

    monkeypatch.setattr(step, "make_train_step", overflowing)
    argv = command(text_file, tmp_path, "--run.divergence.rollbacks=1", "--run.save_every=2")
    argv.remove("--run.save_every=4")
    assert train.main(argv) == 70
    said = capsys.readouterr()
    assert "step 4: back to step 2; batches 2 to 3 are left out" in said.out
    assert re.search(r"step 4: params/\S+ and \d+ more of the state not finite", said.err)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
