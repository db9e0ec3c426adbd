"""Real processes joined by jax.distributed train as one does; when one of them is killed or hangs
the others end with a code to start again on, and any other number of processes goes on.
"""

import signal
import socket
import time

import numpy as np
import pytest

from tests import runs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(argv, cache, *, count, devices, differ=lambda index: [], **environ):
    """`count` processes of `devices` devices each; `differ` adds to the command of one."""
    address = {"FLAXLM_COORDINATOR": f"127.0.0.1:{free_port()}", "FLAXLM_NUM_PROCESSES": str(count)}
    return [
        runs.start(
            [*argv, *differ(i)],
            cache,
            devices=devices,
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
    """Send a signal to one; (codes, outputs, seconds until the last of the others had ended)."""
    began = time.monotonic()
    processes[victim].send_signal(number)
    others = [process for i, process in enumerate(processes) if i != victim]
    outputs = [process.communicate(timeout=150)[0] for process in others]
    seconds = time.monotonic() - began
    processes[victim].kill()
    processes[victim].communicate()
    return [process.returncode for process in others], outputs, seconds


def newest(directory) -> int:
    steps = (directory / "checkpoints").iterdir()
    return max(int(path.name) for path in steps if path.name.isdecimal())


@pytest.mark.slow
def test_two_processes_are_one_run(text_file, data_cache, tmp_path):
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

    expected = [line["loss"] for line in runs.metrics(tmp_path / "one")]
    found = [line["loss"] for line in runs.metrics(tmp_path / "two")]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    one, two = (
        {line["step"]: line["nll"] for line in runs.metrics(tmp_path / name, "eval")}
        for name in ("one", "two")
    )
    assert set(one) == {4, 8, 10} and set(two) == {4, 6, 8, 10}
    np.testing.assert_allclose([two[step] for step in one], list(one.values()), atol=2e-5)


@pytest.mark.slow
def test_killed_of_four_hung_of_two_and_finished_alone(text_file, data_cache, tmp_path):
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

    patient = ["--run.steps=100000", "--run.patience=6"]
    processes = start_by_slurm([*argv, *patient], data_cache, count=2, devices=2)
    reach(processes, directory, first + 7)  # what first + 3 saved is complete by then
    codes, outputs, seconds = strike(processes, 1, signal.SIGSTOP)
    assert codes == [71] and seconds < 60, outputs
    assert f"resumed after step {first}" in outputs[0]
    assert "Slurm job 71: 2 processes at localhost:" in outputs[0]
    stacks = (directory / "stacks-0.txt").read_text()
    assert "nothing moved for" in stacks and "train.py" in stacks and "in loop" in stacks
    second = newest(directory)
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
    expected, found = (runs.metrics(path) for path in (tmp_path / "straight", directory))
    assert [line["step"] for line in found] == list(range(1, second + 5))
    # The loss of every single step: the same rows, corrupted alike, in the same order.
    np.testing.assert_allclose(
        [line["loss"] for line in found], [line["loss"] for line in expected], atol=5e-5
    )


def test_processes_that_differ_are_stopped(text_file, data_cache, tmp_path):
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


def test_a_process_that_never_comes_is_named(text_file, data_cache, tmp_path):
    argv = runs.arguments(text_file, tmp_path / "run")
    (process, *_) = start(
        argv, data_cache, count=1, devices=1, FLAXLM_NUM_PROCESSES="3", FLAXLM_START_TIMEOUT="2"
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 71, output
    assert "process 1, 2 of 3 did not come within 2 s" in output
