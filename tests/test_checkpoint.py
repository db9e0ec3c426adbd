"""Checkpoints: right values or none. Faults are injected, not imagined."""

import gc
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxlm import digests, manifest
from flaxlm.checkpoint import Checkpoints
from flaxlm.errors import ConfigError, MissingInput, RunDirError, StorageError

IDENTITY = {"experiment": {"name": "tiny"}, "vocab": "a" * 64, "data": "b" * 64}
ROOT = Path(__file__).resolve().parent.parent


@struct.dataclass
class State:
    step: Any
    params: Any
    opt: Any
    frozen: Any
    carry: Any


def layout(data=4, fsdp=2):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def place(mesh, x):
    return NamedSharding(mesh, PartitionSpec("fsdp") if np.ndim(x) else PartitionSpec())


def make(seed, mesh):
    """A state as training has it: optimizer with empty nodes, bf16, scalars, empty dicts."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": rng.standard_normal((64, 32), np.float32)},
        "scale": jnp.asarray(rng.standard_normal(8), jnp.bfloat16),
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    state = State(jnp.int32(seed), params, opt, {}, ())
    return jax.tree.map(lambda x: jax.device_put(x, place(mesh, x)), state)


def abstract(state, mesh):
    def leaf(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(mesh, x))

    return jax.tree.map(leaf, state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def open_at(directory, keep=3, **identity):
    return Checkpoints(directory, keep=keep, identity={**IDENTITY, **identity})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with steps 10 and 20; tests copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_at(directory) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make(step, layout()))
    return directory


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restore(directory, mesh=None, **identity):
    mesh = mesh or layout()
    with open_at(directory, **identity) as checkpoints:
        return checkpoints.restore(abstract(make(0, layout()), mesh))


def test_saves_what_the_state_was_and_keeps_the_newest(tmp_path):
    mesh = layout()
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state, wanted = make(0, mesh), {}
    with open_at(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(abstract(state, mesh)) is None
        for step in range(1, 5):
            wanted[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
            checkpoints.save(step, state)
            state = advance(advance(state))  # donated while the save is in flight
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
        assert {"stall", "hash", "total"} == set(checkpoints.seconds)
        checkpoints.save(4, state)  # on disk already: not written again
    got, step = restore(tmp_path)
    assert step == 4
    assert_same(got, wanted[4])


def test_keeps_one_for_every_hour_and_the_best(tmp_path, monkeypatch, caplog):
    now = 1000 * 3600.0
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr("flaxlm.checkpoint.time", clock)
    mesh = layout()
    for losses in ([5.0, 1.0, 2.0, None], [3.0, 4.0, 2.5]):  # two starts
        with Checkpoints(
            tmp_path, keep=1, hours=1.0, best="min loss", identity=IDENTITY
        ) as checkpoints:
            first = max(checkpoints.steps(), default=0) + 1
            for step, loss in enumerate(losses, start=first):
                metrics = None if loss is None else {"loss": loss}
                checkpoints.save(step, make(step, mesh), metrics=metrics)
                now += 20 * 60
    assert checkpoints.steps() == [1, 2, 4, 7]  # 1, 4 and 7 begin an hour, 2 is the best
    assert_same(restore(tmp_path)[0], make(7, mesh))
    assert not caplog.records


def test_files_are_hashed_while_others_are_written(tmp_path, monkeypatch):
    """Nothing but what the finishing touches make is left to hash when the files are written."""
    late = []
    monkeypatch.setattr(
        manifest,
        "digests",
        lambda folder, names: late.extend(names) or digests.digests(folder, names),
    )
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, make(1, layout()), wait=True)
    written = manifest.read(tmp_path / "1")["files"]
    assert {name for name in written if "ocdbt.process_0" in name}.isdisjoint(late)
    assert not list(tmp_path.rglob("DIGESTS*"))


def test_a_file_that_changes_after_it_was_hashed_fails_the_save(tmp_path, monkeypatch):
    take = digests.take

    def tamper(folder):
        found = take(folder)
        truncate(folder / "ocdbt.process_0" / "manifest.ocdbt")
        return found

    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, make(1, layout()), wait=True)
        monkeypatch.setattr(digests, "take", tamper)
        checkpoints.save(2, make(2, layout()))
        with pytest.raises(StorageError, match=r"was written and is damaged: state/ocdbt.*bytes"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        monkeypatch.undo()
        checkpoints.save(3, make(3, layout()), wait=True)


def test_a_failed_save_takes_no_older_step_with_it(tmp_path, full_disk):
    with open_at(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make(step, layout()), wait=True)
        full_disk(True)
        checkpoints.save(3, make(3, layout()))
        with pytest.raises(StorageError, match="checkpoint 3 could not be saved"):
            checkpoints.wait()
        full_disk(False)
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(4, make(4, layout()), wait=True)
        assert checkpoints.steps() == [2, 4]


def test_manifest_says_what_the_checkpoint_holds(saved):
    found = manifest.read(saved / "20")
    assert found["step"] == 20
    assert found["identity"] == IDENTITY
    assert found["tree"]["params/encoder/kernel"] == [[64, 32], "float32"]
    assert found["tree"]["params/scale"] == [[8], "bfloat16"]
    assert (found["mesh"], found["devices"], found["processes"]) == ({"data": 4, "fsdp": 2}, 8, 1)
    assert set(found["versions"]) == {"flaxlm", "jax", "orbax-checkpoint"}
    on_disk = {str(p.relative_to(saved / "20")) for p in (saved / "20").rglob("*") if p.is_file()}
    marks = {"MANIFEST.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(found["files"]) == on_disk - marks


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.faults(3, 4, 5)
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_any_damaged_file_gives_the_step_before(saved, tmp_path, caplog, damage):
    files = sorted(p.relative_to(saved) for p in (saved / "20").rglob("*") if p.is_file())
    assert len(files) > 8
    wanted = {step: make(step, layout()) for step in (10, 20)}
    for number, name in enumerate(files):
        caplog.clear()
        directory = shutil.copytree(saved, tmp_path / str(number))
        damage(directory / name)
        got, step = restore(directory)
        assert_same(got, wanted[step])  # never wrong values
        if name.name in ("_CHECKPOINT_METADATA", "commit_success.txt") and len(name.parts) == 2:
            assert step == 20  # marks of the commit, which hold no state
            continue
        assert step == 10, f"{damage.__name__} of {name} went unseen"
        assert (directory / "20.corrupt").is_dir() and not (directory / "20").exists()
        (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "\n" not in line and "checkpoint 20 is damaged" in line
        assert str(name.relative_to("20")) in line


def test_altered_manifest_is_seen(run):
    path = run / "20" / manifest.NAME
    path.write_text(path.read_text().replace('"step": 20', '"step": 30'))
    assert restore(run)[1] == 10


def test_directories_that_are_no_checkpoint(run, caplog):
    (run / "30").mkdir()  # newest to whoever looks at names alone
    (run / "40.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    mesh = layout()
    with open_at(run) as checkpoints:
        assert not (run / "40.orbax-checkpoint-tmp").exists()
        assert checkpoints.steps() == [10, 20]
        _, step = checkpoints.restore(abstract(make(0, mesh), mesh))
        assert step == 20
        checkpoints.save(30, make(30, mesh), wait=True)  # the name is free again
        assert checkpoints.steps() == [10, 20, 30]
    assert (run / "30.corrupt").is_dir()
    text = caplog.text
    assert "removed" in text and "40.orbax-checkpoint-tmp" in text and "30.corrupt" in text


def test_an_interrupted_deletion_is_completed(run, caplog):
    (run / "5" / "state").mkdir(parents=True)
    with open_at(run, keep=2):
        assert sorted(os.listdir(run)) == ["10", "20"]  # 5 was to go
    assert "whose deletion was interrupted" in caplog.text
    (run / "5" / "state").mkdir(parents=True)
    with open_at(run, keep=3):
        assert sorted(os.listdir(run)) == ["10", "20", "5.corrupt"]  # 5 was to stay


def test_a_step_is_damaged_twice(run):
    mesh = layout()
    for name in ("20.corrupt", "20.corrupt-2"):
        flip(run / "20" / "state" / "manifest.ocdbt")
        with open_at(run) as checkpoints:
            assert checkpoints.restore(abstract(make(0, mesh), mesh))[1] == 10
            assert (run / name).is_dir()
            checkpoints.save(20, make(20, mesh))  # the run comes by again


def test_only_damaged_steps_stop_the_run(run):
    for step in ("10", "20"):
        (run / step / manifest.NAME).unlink()
    for _ in range(2):  # also at the next start: a run does not begin again in silence
        with pytest.raises(StorageError, match=r"10\.corrupt, 20\.corrupt") as error:
            restore(run)
        assert error.value.code == 74


def test_another_vocabulary_or_data_is_refused(run):
    for key in ("vocab", "data"):
        with pytest.raises(MissingInput) as error:
            restore(run, **{key: "c" * 64})
        assert IDENTITY[key] in str(error.value) and "c" * 64 in str(error.value)
    assert restore(run)[1] == 20  # nothing was set aside


@pytest.mark.faults(13)
def test_another_state_is_refused_with_a_table(run, fault_row):
    mesh = layout()
    wanted = abstract(make(0, mesh), mesh)
    other = jax.ShapeDtypeStruct((64, 32), jnp.bfloat16, sharding=place(mesh, np.zeros(1)))
    wanted.params["encoder"]["kernel"] = other
    wanted.params["bias"] = wanted.params.pop("scale")
    with open_at(run) as checkpoints, pytest.raises(ConfigError) as error:
        checkpoints.restore(wanted)
    lines = str(error.value).splitlines()
    assert "3 arrays differ" in lines[0]
    cells = [line.split(maxsplit=1) for line in lines[1:]]
    assert cells == [
        ["params/bias", "saved absent, now bfloat16[8]"],
        ["params/encoder/kernel", "saved float32[64,32], now bfloat16[64,32]"],
        ["params/scale", "saved bfloat16[8], now absent"],
    ]
    assert restore(run)[1] == 20
    fault_row(
        injected="float32 parameters saved, bfloat16 wanted; others absent or added",
        happened="nothing is cast: a table of path, saved and wanted dtype and shape, before an "
        "array is read; the step is not touched",
        exit_code=error.value.code,
    )


@pytest.mark.faults(9, 10)
@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (8, 1), (1, 2), (1, 1)])
def test_restores_onto_any_mesh(saved, sizes):
    mesh = layout(*sizes)
    got, step = restore(saved, mesh)
    assert step == 20
    assert_same(got, make(20, layout()))
    assert got.params["encoder"]["kernel"].sharding == place(mesh, np.zeros(1))


@pytest.fixture
def full_disk():
    """Call it with True to make files of more than 4 kB fail, with False to let them pass."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(full):
        soft = 4096 if full else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(False)
    gc.collect()  # what the failed saves left unfinished, before the interpreter ends


@pytest.mark.faults(6)
# Writes that fail after the first find the event loop of their save closed, and say so unasked.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_drops_the_save_and_keeps_the_run(tmp_path, full_disk, caplog, fault_row):
    mesh = layout()
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, make(1, mesh), wait=True)
        full_disk(True)
        checkpoints.save(2, make(2, mesh))
        with pytest.raises(StorageError, match=r"checkpoint 2 could not be saved.*File too large"):
            checkpoints.wait()
        full_disk(False)
        assert checkpoints.failures == 1
        assert sorted(os.listdir(tmp_path)) == ["1"]  # what fills the disk is gone
        checkpoints.save(3, make(3, mesh), wait=True)
        assert (checkpoints.failures, checkpoints.steps()) == (0, [1, 3])
        full_disk(True)
        for step in (4, 5, 6):
            checkpoints.save(step, make(step, mesh))  # the error of 5 is found by 6
        with pytest.raises(StorageError, match="3 failures in a row"):
            checkpoints.save(7, make(7, mesh))
        full_disk(False)
        checkpoints.save(8, make(8, mesh), wait=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 4 and all("\n" not in line for line in warnings)
    assert_same(restore(tmp_path)[0], make(8, mesh))
    fault_row(
        injected="RLIMIT_FSIZE in the middle of asynchronous saves",
        happened="the partial step is removed, older ones are untouched, the next save is tried",
        exit_code=StorageError.code,
    )


@pytest.mark.parametrize(
    "text",
    [
        "OUT_OF_RANGE: Error writing: Failed to write 9 bytes: File too large [os_error_code='27']",
        "OUT_OF_RANGE: File too large [source='a: b'] [spec='{c: true}'] [os_error_code='27']",
    ],
)
def test_cause_of_a_failed_save_is_named_wherever_the_text_has_it(run, text):
    saved = r"checkpoint 30 could not be saved.*File too large;"
    with pytest.raises(StorageError, match=saved), open_at(run) as checkpoints:
        checkpoints._facts = {"step": 30}
        checkpoints._failed(RuntimeError(text))


def test_nearly_full_disk_is_not_filled(run, monkeypatch):
    mesh = layout()
    usage = shutil.disk_usage(run)
    with open_at(run) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
        checkpoints.save(30, make(30, mesh))
        assert (checkpoints.failures, checkpoints.steps()) == (1, [10, 20])
        with pytest.raises(StorageError, match=r"0\.00 GiB free") as error:
            checkpoints.wait()
        assert error.value.code == 74
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        checkpoints.save(40, make(40, mesh), wait=True)
        assert (checkpoints.failures, checkpoints.steps()) == (0, [10, 20, 40])


def test_a_defect_is_no_storage_failure(tmp_path, monkeypatch):
    def defect(*arguments, **options):
        raise RuntimeError("Array has been deleted")

    with open_at(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", defect)
        with pytest.raises(RuntimeError, match="has been deleted"):
            checkpoints.save(1, {"a": jnp.zeros(2)})
        assert checkpoints.failures == 0


def test_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_at("relative/run") as checkpoints:
        assert checkpoints.directory == tmp_path / "relative" / "run"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="Not a directory") as error:
        open_at(tmp_path / "file" / "run")
    assert error.value.code == 73
    with pytest.raises(ConfigError, match="keep=0"):
        open_at(tmp_path, keep=0)


KILLED = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp
from flaxlm.checkpoint import Checkpoints

directory, seed = sys.argv[1], int(sys.argv[2])
names = ("experiment", "vocab", "data")
for wait in random.Random(seed).choices(range(200), k=10):  # milliseconds into the saving
    read, write = os.pipe()
    child = os.fork()  # before any device is touched, so once imported serves all
    if child == 0:
        with Checkpoints(directory, keep=2, identity=dict.fromkeys(names, "x")) as checkpoints:
            step = max(checkpoints.steps(), default=0)
            while True:
                step += 1
                checkpoints.save(step, {"w": jnp.full((256, 64), step, jnp.float32)})
                if step % 3 == 0:
                    os.write(write, b".")
    os.close(write)
    assert os.read(read, 1) == b".", "the saving process died by itself"
    time.sleep(wait / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    steps = [name for name in os.listdir(directory) if name.isdecimal()]
    # The newest is complete; an older one may have been killed in its deletion.
    whole = [name for name in steps if os.path.exists(f"{directory}/{name}/MANIFEST.json")]
    assert whole and max(map(int, steps)) == max(map(int, whole)), (wait, steps, whole)
    print(wait, max(map(int, whole)), flush=True)
"""


def child_environment(**extra):
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **extra}


@pytest.mark.faults(1)
def test_kill_at_random_moments(tmp_path, fault_row):
    seed = random.randrange(1000)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(seed)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr[-2000:]}"
    newest = int(done.stdout.split()[-1])
    like = {"w": jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=place(layout(), [0]))}
    identity = dict.fromkeys(IDENTITY, "x")
    with Checkpoints(tmp_path, keep=2, identity=identity) as checkpoints:
        state, step = checkpoints.restore(like)
    assert step == newest
    assert np.unique(np.asarray(state["w"])).tolist() == [step]
    assert not list(tmp_path.glob("*.orbax-checkpoint-tmp*"))
    fault_row(
        injected="kill -9 at ten random moments of saves that follow each other without a pause",
        happened="the newest complete step verifies each time and has the right values; what was "
        "left is removed at the next start with a line",
        exit_code=-signal.SIGKILL,
        lost="the steps since the last complete save",
    )


TWO = """
import json, os, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
port, process, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=60)
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from flaxlm.checkpoint import Checkpoints
from flaxlm.errors import UserError
from flaxlm.lock import RunLock
from flaxlm.preempt import StopSignal

mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("fsdp"))
make = jax.jit(lambda step: {"w": jnp.arange(64.0) * step}, out_shardings=split)
like = {"w": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=split)}
identity = {"experiment": {}, "vocab": "a", "data": "b"}
report = {}

def refused(action):
    try:
        action()
    except UserError as error:
        return [error.code, str(error)]

with StopSignal() as stop, RunLock(directory), Checkpoints(
    directory + "/checkpoints", keep=2, identity=identity
) as checkpoints:
    report["lock"] = refused(RunLock(directory).__enter__)
    for step in range(1, 10**6):
        state = make(step)
        jax.block_until_ready(state)
        if step == 3:
            checkpoints.save(step, state)
            print("saving", flush=True)
        if name := stop.reached(step):
            checkpoints.save(step, state, wait=True)
            report["stopped"] = [name, step]
            break
    report["restored"] = checkpoints.restore(like)[1]
    wrong = {"w": jax.ShapeDtypeStruct((64,), jnp.bfloat16, sharding=split)}
    report["dtype"] = refused(lambda: checkpoints.restore(wrong))
    if process == 1:  # a bit of the file that the other process wrote
        folder = checkpoints.directory / str(report["restored"]) / "state" / "ocdbt.process_0"
        path = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    checkpoints.before(0)  # which waits for both
    report["fallback"] = checkpoints.restore(like)[1]
private = f"{directory}/{process}"  # a folder of its own is not shared
report["shared"] = refused(lambda: Checkpoints(private, keep=1, identity=identity))
print("REPORT " + json.dumps(report), flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.faults(4)
def test_two_processes_save_and_one_restores(tmp_path, fault_row):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [open(tmp_path / f"log{process}", "w+") for process in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(port), str(process), str(tmp_path)],
            env=child_environment(),
            stdout=logs[process],
            stderr=subprocess.STDOUT,
        )
        for process in range(2)
    ]
    try:
        await_text(tmp_path / "log1", "saving", processes[1])
        processes[1].send_signal(signal.SIGINT)  # to one of them
        for process in processes:
            process.wait(timeout=90)
    finally:
        for process in processes:
            process.kill()
        text = [(tmp_path / f"log{process}").read_text() for process in range(2)]
        for log in logs:
            log.close()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text)
    one, other = (json.loads(log.rpartition("REPORT ")[2].splitlines()[0]) for log in text)
    assert one["stopped"][1] == other["stopped"][1] == one["restored"] == other["restored"] >= 3
    assert other["stopped"][0] == "SIGINT"
    assert one["lock"] == other["lock"] and one["lock"][0] == 73
    assert one["dtype"] == other["dtype"] and one["dtype"][0] == 78
    assert one["fallback"] == other["fallback"] == 3 < one["restored"]
    fault_row(
        injected="two processes; one bit of the newest step flipped",
        happened="each process checks a share of the files, both fall back to the same step",
        exit_code=None,
        lost="nothing but the time of the steps since that one",
    )
    for report in (one, other):
        assert report["shared"][0] == 73 and "process 1 of 2" in report["shared"][1]

    step = one["fallback"]
    found = manifest.read(tmp_path / "checkpoints" / str(step))
    assert (found["processes"], found["devices"]) == (2, 4)
    like = {"w": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=place(layout(), [0]))}
    identity = {"vocab": "a", "data": "b"}
    with Checkpoints(tmp_path / "checkpoints", keep=2, identity=identity) as checkpoints:
        state, restored = checkpoints.restore(like)
    assert restored == step
    np.testing.assert_array_equal(np.asarray(state["w"]), np.arange(64.0, dtype=np.float32) * step)


def await_text(path, text, process, seconds=60):
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert process.poll() is None and time.monotonic() < end, path.read_text()
        time.sleep(0.05)
