"""What can happen to a run directory, done to the one of a real run: the next start goes on with
the same numbers, or says in one line why it does not.
"""

import ctypes
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from flaxlm import train
from tests import runs
from tests.test_lock import other  # noqa: F401, a fixture: another process that holds the lock

STEPS = 8


@pytest.fixture
def command(text_file, data_cache, monkeypatch, capsys, caplog):
    """`command(directory, *overrides)` -> (exit code, what it said): the tiny run, on 8 devices."""
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))

    def run(directory, *overrides):
        caplog.clear()
        argv = runs.arguments(text_file, directory, f"--run.steps={STEPS}", *overrides)
        code = train.main(argv)
        said = capsys.readouterr()
        return code, "\n".join([said.out, caplog.text, said.err.strip()])

    return run


@pytest.fixture(scope="module")
def straight(text_file, data_cache, tmp_path_factory):
    """A run of 8 steps, of which 4, 6 and 8 are saved. Tests copy it."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXLM_CACHE", str(data_cache))
        argv = runs.arguments(text_file, directory, f"--run.steps={STEPS}")
        assert train.main(argv) == 0
    return directory


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


def newest(run: Path) -> Path:
    return run / "checkpoints" / str(STEPS)


def data_file(run: Path) -> Path:
    """The largest file of the newest step."""
    files = (path for path in newest(run).rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(run):
    content = bytearray(data_file(run).read_bytes())
    content[len(content) // 2] ^= 4
    data_file(run).write_bytes(content)


def cut_copy(run):
    """As of a copy that was broken off: what comes first in the folder is there, the rest not."""
    paths = sorted(path for path in newest(run).rglob("*") if path.is_file())
    for path in paths[len(paths) // 2 :]:
        path.unlink()
    (newest(run) / "MANIFEST.json").unlink(missing_ok=True)


DAMAGES = [
    pytest.param(
        lambda run: os.truncate(data_file(run), data_file(run).stat().st_size // 2),
        r"bytes instead of",
        "data file of the newest step cut in half",
        marks=pytest.mark.faults(3),
    ),
    pytest.param(
        lambda run: (newest(run) / "MANIFEST.json").unlink(),
        "no MANIFEST.json",
        "manifest of the newest step deleted",
        marks=pytest.mark.faults(3),
    ),
    pytest.param(
        lambda run: (newest(run) / "state" / "_METADATA").unlink(),
        "_METADATA cannot be found",
        "_METADATA of the newest step deleted",
        marks=pytest.mark.faults(3),
    ),
    pytest.param(
        flip,
        "right size but other content",
        "one bit of an array file of the newest step flipped",
        marks=pytest.mark.faults(4),
    ),
    pytest.param(
        cut_copy,
        "an interrupted copy",
        "half of the files of the newest step, manifest and commit mark among them, missing",
        marks=pytest.mark.faults(5),
    ),
]


@pytest.mark.parametrize(("damage", "line", "injected"), DAMAGES)
def test_damaged_newest_step(straight, run, command, fault_row, damage, line, injected):
    damage(run)
    code, said = command(run)
    assert code == 0 and "resumed after step 6" in said, said
    (warning,) = [text for text in said.splitlines() if "checkpoint 8 is damaged" in text]
    assert line in warning
    aside = run / "checkpoints" / f"{STEPS}.corrupt"
    assert aside.is_dir()
    again, wanted = runs.parameters(run, STEPS), runs.parameters(straight, STEPS)
    assert all(np.array_equal(a, b) for a, b in zip(again, wanted, strict=True))
    fault_row(
        injected=injected,
        happened=f'"{line.strip()}", set aside as 8.corrupt before an array is read; goes on from '
        "step 6, and step 8 comes out the same bit for bit",
        exit_code=code,
        lost="nothing but the time of the steps since the one before",
    )


@pytest.mark.faults(3)
def test_no_step_is_left(run, command, fault_row):
    for step in (4, 6, 8):
        (run / "checkpoints" / str(step) / "MANIFEST.json").unlink()
    for _ in range(2):  # the next start as well: a run does not begin again in silence
        code, said = command(run)
        assert code == 74 and "there are only 4.corrupt, 6.corrupt, 8.corrupt" in said
    fault_row(
        injected="all steps damaged",
        happened="stops and names what was set aside, at every start: a run does not begin again "
        "in silence",
        exit_code=code,
    )


@pytest.mark.faults(9)
def test_other_meshes(straight, run, command, fault_row):
    wanted = [line["loss"] for line in runs.metrics(straight) if line["step"] > 4]
    shutil.rmtree(newest(run))
    code, said = command(run, "--mesh.data=2", "--mesh.fsdp=4")
    assert code == 0 and "resumed after step 6" in said, said
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    code, said = command(run, "--mesh.data=1", "--mesh.fsdp=4", "--mesh.tensor=2")
    assert code == 0 and "resumed after step 4" in said, said
    found = [line["loss"] for line in runs.metrics(run) if line["step"] > 4]
    worst = np.abs(np.subtract(found, wanted)).max()
    assert len(found) == 4 and worst < 1e-5
    fault_row(
        injected="saved on a mesh of 8 x data, resumed on 2 x data, 4 x fsdp and on 4 x fsdp, "
        "2 x tensor",
        happened="restored to the new mesh, which is logged; the next losses agree within 1e-5",
        exit_code=code,
    )


@pytest.mark.faults(8)
def test_started_twice(tmp_path, other, command, fault_row):  # noqa: F811
    code, said = command(tmp_path)
    assert code == 73 and f"is in use by process {other.pid} on " in said
    assert sorted(os.listdir(tmp_path)) == ["RUN.lock"]  # it touched nothing
    fault_row(
        injected="the run directory is locked by a living process",
        happened="names its host and process, touches nothing",
        exit_code=code,
    )


@pytest.mark.faults(7)
def test_unusable_run_directories(tmp_path, command, fault_row):
    (tmp_path / "file").write_text("")
    code, said = command(tmp_path / "file" / "run")
    assert code == 73 and "cannot be written: Not a directory" in said
    happened = "a probe in the first second, before data is prepared; says what to change"
    fault_row(injected="run directory below a file", happened=happened, exit_code=code)
    code, said = command("gs://bucket/run")
    assert code == 73 and "mount it" in said
    fault_row(
        injected="run directory gs://...",
        happened="says that buckets are mounted",
        exit_code=code,
    )
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    with without_roots_rights():
        code, said = command(closed / "run")
    assert code == 77 and "Permission denied" in said
    fault_row(injected="no permission to write there", happened=happened, exit_code=code)


@contextmanager
def without_roots_rights():
    """Root may write anywhere, until this thread puts down CAP_DAC_OVERRIDE and _READ_SEARCH."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the structure, this thread
    held, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer[:] = held
    fewer[0] &= ~0b110  # of the effective ones; they stay permitted
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)` -> a folder on a file system of its own, of that size."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.faults(6)
def test_disk_too_small(straight, command, small_disk, fault_row):
    arrays = sum(array.nbytes for array in runs.parameters(straight, STEPS))
    disk = small_disk(arrays + arrays // 2)
    code, said = command(disk / "run")
    assert code == 73 and "two checkpoints need" in said and "GiB free" in said, said
    assert not list(disk.glob("run/checkpoints/*"))
    fault_row(
        injected="a tmpfs with room for one checkpoint and a half",
        happened="refused before the first step, with both numbers",
        exit_code=code,
    )


@pytest.mark.faults(6)
def test_disk_full_in_the_run(straight, command, small_disk, fault_row):
    one = size_of(newest(straight))
    # While one is written it takes up to twice its room: one may fail, and the next find a place.
    disk = small_disk(5 * one)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(5 * one // 2))
    overrides = ["--run.save_every=1", "--run.eval_every=0"]
    code, said = command(disk / "run", *overrides, "--run.keep=99")
    assert code == 74 and "3 failures in a row" in said, said
    steps = sorted(int(p.name) for p in (disk / "run" / "checkpoints").iterdir())
    assert 1 in steps, "and no partial one, which has no number, fills the disk"
    assert "failure 1 of 3" in said and f"step {steps[-1] + 3}/" in said  # it went on
    saves = [line for line in runs.metrics(disk / "run", "goodput") if "saves_failed" in line]
    assert {line["saves_failed"] for line in saves} == {0, 1, 2}
    code, said = command(disk / "run", *overrides, "--run.keep=99")
    assert code == 73 and "two checkpoints need" in said
    ballast.unlink()
    code, said = command(disk / "run", *overrides, "--run.keep=1")
    assert code == 0 and f"resumed after step {steps[-1]}" in said, said
    again, wanted = runs.parameters(disk / "run", STEPS), runs.parameters(straight, STEPS)
    assert all(np.array_equal(a, b) for a, b in zip(again, wanted, strict=True))
    fault_row(
        injected="a tmpfs that is full after a few checkpoints",
        happened="drops the partial one, trains on, tries at the next interval, counts it in "
        "metrics.jsonl (saves_failed); stops at the third failure in a row. With room again the "
        "same command goes on from the newest complete step",
        exit_code=74,
        lost="nothing but the time of the steps since",
    )
