"""Signals to whole runs, at every kind of moment: the state is saved, and nothing is lost."""

import os
import signal
import threading
import time

import pytest

from flaxlm import step, train
from flaxlm.data.batches import Batches, EvalBatches
from flaxlm.metrics import MetricsWriter
from tests import runs
from tests.test_distributed import newest, reach, start

STEPS = ["--run.steps=8", "--run.save_every=0", "--run.eval_every=4"]


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)


def at_step(monkeypatch, moment, number, act=send):
    """Right after step `moment` was dispatched: the devices are in it."""
    tick = MetricsWriter.tick

    def ticked(self, step):
        tick(self, step)
        if step == moment:
            act(number)

    monkeypatch.setattr(MetricsWriter, "tick", ticked)


def in_evaluation(monkeypatch):
    get = EvalBatches.__getitem__

    def got(self, number):
        if number == 1:
            send(signal.SIGTERM)
        return get(self, number)

    monkeypatch.setattr(EvalBatches, "__getitem__", got)


def in_compilation(monkeypatch):
    make = step.make_train_step

    def made(*args, **options):
        inner = make(*args, **options)

        def traced(state, batch):
            send(signal.SIGTERM)
            return inner(state, batch)

        return traced

    monkeypatch.setattr(step, "make_train_step", made)


def waiting_for_data(monkeypatch, moment):
    """The batch after step `moment` never comes. Returns what lets its thread go at last."""
    get, release = Batches.__getitem__, threading.Event()

    def got(self, number):
        if number == moment:
            assert release.wait(600), "nobody took the run out of its waiting"
        return get(self, number)

    monkeypatch.setattr(Batches, "__getitem__", got)
    later = lambda number: threading.Timer(1.0, send, [number]).start()
    at_step(monkeypatch, moment, signal.SIGTERM, later)
    return release


@pytest.mark.faults(2)
def test_stopped_at_every_moment_is_the_straight_run(
    text_file, data_cache, tmp_path, monkeypatch, capsys, fault_row
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    with monkeypatch.context() as patch:
        at_step(patch, 3, signal.SIGUSR1)  # saves and goes on
        assert train.main(runs.arguments(text_file, straight, *STEPS)) == 0
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {"3", "8"}

    argv = runs.arguments(text_file, stopped, *STEPS)
    moments = {
        "in the first compilation": (in_compilation, 1),
        "in a step": (lambda patch: at_step(patch, 3, signal.SIGINT), 3),
        "in an evaluation": (in_evaluation, 4),
        "while waiting for data": (lambda patch: waiting_for_data(patch, 6), 6),
    }
    for moment, (inject, saved) in moments.items():
        with monkeypatch.context() as patch:
            release = inject(patch)
            assert train.main(argv) == 75, moment
            if release is not None:
                release.set()
        assert "stopped, the state is saved; the same command goes on" in capsys.readouterr().out
        assert newest(stopped) == saved, moment
        fault_row(
            injected=f"{'SIGINT' if saved == 3 else 'SIGTERM'} {moment}",
            happened=f"saved after step {saved}, the next start goes on from there: the straight "
            "run bit for bit, its evaluations included",
            exit_code=75,
        )
    assert train.main(argv) == 0
    for kind in ("train", "eval"):
        columns = [
            [(line["step"], line["loss"], line["nll"]) for line in runs.metrics(directory, kind)]
            for directory in (straight, stopped)
        ]
        assert columns[0] == columns[1], kind
    pairs = zip(runs.parameters(straight, 8), runs.parameters(stopped, 8), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    fault_row(
        injected="SIGUSR1 in a step",
        happened="saved after that step, the run goes on",
        exit_code=None,
    )


@pytest.mark.slow
@pytest.mark.faults(2)
def test_two_processes_agree_where_to_stop_and_when_to_save(
    text_file, data_cache, tmp_path, fault_row
):
    argv = runs.arguments(
        text_file, tmp_path, "--mesh.data=2", "--run.steps=100000", "--run.save_every=0",
        "--run.eval_every=0", "--run.log_every=2",
    )  # fmt: skip
    # In the first compilation: the banner was the last word before it.
    processes = start(argv, data_cache, count=2, devices=1, JAX_ENABLE_COMPILATION_CACHE="false")
    for line in processes[0].stdout:
        if line.lstrip().startswith("run "):
            break
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    first = newest(tmp_path)
    # In a step; and saved before, on the word of the other process.
    processes = start(argv, data_cache, count=2, devices=1)
    reach(processes, tmp_path, first + 6)
    processes[1].send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 240
    while newest(tmp_path) == first:
        assert time.monotonic() < deadline, "SIGUSR1 was not heard"
        time.sleep(0.05)
    asked = newest(tmp_path)
    processes[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert f"resumed after step {first}" in outputs[0]
    assert (
        newest(tmp_path) > asked
        and newest(tmp_path) == runs.metrics(tmp_path, "goodput")[-1]["step"]
    )
    fault_row(
        injected="SIGTERM to one of two processes, in the first compilation and in a step; SIGUSR1",
        happened="both save after the same step and end; after SIGUSR1 both save and go on",
        exit_code=75,
    )
