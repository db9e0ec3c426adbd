"""Real processes joined by jax.distributed train as one does; when one of them is killed or hangs
the others end with a code to start again on, and any other number of processes goes on.
"""

import re
import signal
import socket
import time

import jax
import numpy as np
import pytest

from flaxlm import distributed, rundir, train
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import train_vocab
from tests import equal, runs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    argv,
    cache,
    *,
    count,
    devices,
    differ=lambda index: [],
    folder=lambda index: runs.ROOT,
    **environ,
):
    """`count` processes of `devices` devices each; `differ` adds to the command of one, `folder` is
    where it is started.
    """
    address = {"FLAXLM_COORDINATOR": f"127.0.0.1:{free_port()}", "FLAXLM_NUM_PROCESSES": str(count)}
    return [
        runs.start(
            [*argv, *differ(i)],
            cache,
            devices=devices,
            folder=folder(i),
            **({"FLAXLM_PROCESS_ID": str(i)} | address | environ),
        )
        for i in range(count)
    ]


def start_by_slurm(argv, cache, *, count, devices):
    """The same from what srun would set."""
    step = {
        "SLURM_JOB_ID": "71", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count), "JAX_COORDINATOR_PORT": str(free_port()),
    }  # fmt: skip
    return [
        runs.start(argv, cache, devices=devices, SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **step)
        for i in range(count)
    ]


def pair(argv, cache, *, devices):
    """Two processes; their outputs when both have ended well."""
    processes = start(argv, cache, count=2, devices=devices)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def reach(processes, directory, step):
    """Wait until a training line of at least `step` is written."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        file = directory / "metrics.jsonl"
        if file.exists() and file.read_bytes().endswith(b"\n"):
            if any(line["step"] >= step for line in runs.metrics(directory)):
                return
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


def strike(processes, victim, number):
    """Send a signal to one; (codes, outputs, seconds until the last of the others had ended). The
    last code is that of the one, if it was stopped and goes on when the others have ended.
    """
    began = time.monotonic()
    processes[victim].send_signal(number)
    others = [process for i, process in enumerate(processes) if i != victim]
    outputs = [process.communicate(timeout=150)[0] for process in others]
    seconds = time.monotonic() - began
    if number == signal.SIGSTOP:  # when it wakes up it finds itself alone
        processes[victim].send_signal(signal.SIGCONT)
        others.append(processes[victim])
        outputs.append(processes[victim].communicate(timeout=150)[0])
    processes[victim].kill()
    processes[victim].communicate()
    return [process.returncode for process in others], outputs, seconds


def newest(directory) -> int:
    steps = (directory / "checkpoints").iterdir()
    return max(int(path.name) for path in steps if path.name.isdecimal())


@pytest.mark.slow
@pytest.mark.faults(10)
def test_two_processes_are_one_run(text_file, data_cache, tmp_path, fault_row):
    mesh = ["--mesh.data=2", "--mesh.fsdp=2", "--run.save_every=3"]
    one = runs.start(
        runs.arguments(text_file, tmp_path / "one", *mesh, "--run.steps=10"), data_cache, devices=4
    )
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output

    argv = runs.arguments(text_file, tmp_path / "two", *mesh)
    outputs = pair([*argv, "--run.steps=6"], data_cache, devices=2)
    assert "2 process(es)" in outputs[0] and "step 6/6" in outputs[0]
    assert "step 6/6" not in outputs[1], "the second process is silent"

    alone = runs.start([*argv, "--run.steps=10"], data_cache, devices=4)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0 and "resumed after step 6" in output, output

    equal.assert_losses_agree(tmp_path / "two", tmp_path / "one", atol=2e-5)
    one, two = (
        {line["step"]: line["nll"] for line in runs.metrics(tmp_path / name, "eval")}
        for name in ("one", "two")
    )
    assert set(one) == {4, 8, 10} and set(two) == {4, 6, 8, 10}
    np.testing.assert_allclose([two[step] for step in one], list(one.values()), atol=2e-5)
    fault_row(
        injected="saved by two processes of 2 devices, resumed by one of 4",
        happened="the same rows in every batch; losses of all steps and evaluations agree with "
        "those of a run by one process within 2e-5",
        exit_code=alone.returncode,
    )


@pytest.mark.slow
@pytest.mark.faults(20)
def test_killed_of_four_hung_of_two_and_finished_alone(text_file, data_cache, tmp_path, fault_row):
    mesh = ["--mesh.data=2", "--mesh.fsdp=2", "--run.save_every=3", "--run.eval_every=0"]
    directory = tmp_path / "run"
    argv = runs.arguments(text_file, directory, *mesh)
    again = (71, -signal.SIGABRT)  # ours, and jax's own when it is faster; a shell calls it 134

    processes = start([*argv, "--run.steps=100000"], data_cache, count=4, devices=1)
    reach(processes, directory, 7)
    codes, outputs, seconds = strike(processes, 2, signal.SIGKILL)
    assert set(codes) <= set(again), outputs
    assert seconds < 100
    first = newest(directory)
    fault_row(
        injected="SIGKILL to one of four processes in a step",
        happened="the others end within 100 s and say that a process is gone; the same command "
        "goes on from the newest checkpoint, with any number of processes",
        exit_code="71, or 134 where jax ends them first",
        lost="the steps since the last save",
    )

    patient = ["--run.steps=100000", "--run.patience=6"]
    processes = start_by_slurm([*argv, *patient], data_cache, count=2, devices=2)
    reach(processes, directory, first + 7)  # what first + 3 saved is complete by then
    codes, outputs, seconds = strike(processes, 1, signal.SIGSTOP)
    assert codes[0] == 71 and seconds < 60, outputs
    assert codes[1] in again, outputs
    assert f"resumed after step {first}" in outputs[0]
    assert "Slurm job 71: 2 processes at localhost:" in outputs[0]
    stacks = (directory / "stacks-0.txt").read_text()
    assert "nothing moved for" in stacks and "in loop" in stacks
    second = newest(directory)
    fault_row(
        injected="SIGSTOP to one of two processes in a step",
        happened="the other ends after run.patience, with the stacks of its threads in "
        "stacks-0.txt, and the stopped one when it wakes up; the same command goes on",
        exit_code="71, or 134 where jax ends it first",
        lost="the steps since the last save",
    )
    assert second > first

    last = [f"--run.steps={second + 4}"]
    alone = runs.start([*argv, *last], data_cache, devices=4)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0 and f"resumed after step {second}" in output, output
    assert "lost" in output.rpartition("goodput: ")[2]

    straight = runs.start(
        [*runs.arguments(text_file, tmp_path / "straight", *mesh), *last], data_cache, devices=4
    )
    output, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0, output
    assert len(runs.metrics(directory)) == second + 4
    # The loss of every single step: the same rows, corrupted alike, in the same order.
    equal.assert_losses_agree(directory, tmp_path / "straight", atol=5e-5)


@pytest.mark.faults(21)
def test_processes_that_differ_are_stopped(text_file, data_cache, tmp_path, fault_row):
    argv = runs.arguments(text_file, tmp_path / "run")
    began = time.monotonic()
    processes = start(
        argv, data_cache, count=2, devices=1, differ=lambda index: [f"--run.seed={index}"]
    )
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [78, 78], outputs
    host = socket.gethostname()
    line = f"flaxlm: process 1 ({host}) was started with run.seed 1, process 0 ({host}) with 0"
    assert all(line in output for output in outputs), outputs
    assert time.monotonic() - began < 60  # most of it imports
    assert not (tmp_path / "run").exists()
    fault_row(
        injected="two processes started with different seeds",
        happened="both stop before anything is written, naming host, field and both values",
        exit_code=78,
    )


@pytest.mark.faults(20)
def test_a_process_with_less_data_is_stopped(text_file, data_cache, tmp_path, fault_row):
    """Steps are numbered over all processes, so none can run out of batches before the others; one
    whose own disk holds another text is found before the first step.
    """
    vocabulary = tmp_path / "vocab.model"
    trained = train_vocab(
        iter(text_file.read_text(encoding="utf-8").split("\n\n")),
        Vocabulary(size=400, kind="bpe"),
        names="text",
    )
    vocabulary.write_bytes(trained.model)
    text = text_file.read_bytes()
    for index, content in enumerate([text, text[: len(text) // 2]]):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "text.txt").write_bytes(content)
    argv = runs.arguments("text.txt", tmp_path / "run", f"--data.vocabulary.path={vocabulary}")
    processes = start(
        argv, data_cache, count=2, devices=1, folder=lambda index: tmp_path / str(index)
    )
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [78, 78], outputs
    line = "flaxlm: process 1 .* was started with data .*, process 0 .* with .*"
    assert all(re.search(line, output) for output in outputs), outputs
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    fault_row(
        injected="two processes that see different texts under one name, one of them half as long",
        happened="all stop before the first step and name the process that differs; batches are "
        "numbered over all processes, so none can have fewer than the others",
        exit_code=78,
    )


def test_a_process_that_never_comes_is_named(text_file, data_cache, tmp_path):
    argv = runs.arguments(text_file, tmp_path / "run")
    (process, *_) = start(
        argv, data_cache, count=1, devices=1, FLAXLM_NUM_PROCESSES="3", FLAXLM_START_TIMEOUT="2"
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 71, output
    assert "process 1, 2 of 3 did not come within 2 s" in output


def test_a_peer_that_goes_while_this_process_starts(text_file, data_cache, tmp_path, monkeypatch):
    """The first exchange fails: no traceback, and the code to start all of them again on."""
    said = []

    class Abandoned(Exception):
        pass

    def abandon(reason, *, last):
        last()
        said.append(reason)
        raise Abandoned

    def fails(loaded):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo context initialization failed: timed out")

    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "abandon", abandon)
    monkeypatch.setattr(rundir, "open_run", fails)
    with pytest.raises(Abandoned):
        train.main(runs.arguments(text_file, tmp_path / "run"))
    assert said[0].startswith("another process of the run is gone: UNKNOWN: Gloo")
