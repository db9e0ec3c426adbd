"""One run per directory, and a directory that can be written."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flaxlm import lock
from flaxlm.errors import RunDirError
from flaxlm.lock import RunLock, check_space, prepare_run_dir

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from flaxlm.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.faults(8)
def test_second_start_is_refused_until_the_first_is_dead(tmp_path, other, caplog, fault_row):
    with pytest.raises(RunDirError, match=f"in use by process {other.pid} on ") as error:
        RunLock(tmp_path).__enter__()
    assert error.value.code == 73
    other.send_signal(signal.SIGKILL)
    other.wait()
    with RunLock(tmp_path) as held:
        held.check()
        assert f"from process {other.pid} on " in caplog.text and "gone" in caplog.text
        with pytest.raises(RunDirError, match=f"process {os.getpid()}"):
            RunLock(tmp_path).__enter__()
    assert os.listdir(tmp_path) == []
    fault_row(
        injected="the holder of the lock killed with SIGKILL",
        happened="the next start takes the lock over with a line; one of another machine when its "
        "heartbeat stays out for 5 minutes, or for the 90 s for which it is watched",
        exit_code=None,
    )


def write_foreign(path, *, silent, **changes):
    """A lock of a machine whose processes cannot be seen from here."""
    holder = {"host": "far", "pid": 1, "machine": "far/1", "born": "1", "token": "t", **changes}
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - silent,) * 2)


def test_heartbeat_of_another_machine_decides(tmp_path, caplog):
    path = tmp_path / "RUN.lock"
    write_foreign(path, silent=lock.STALE + 60)
    with RunLock(tmp_path):
        assert "taking over" in caplog.text and "no heartbeat for 36" in caplog.text
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_on_another_machine_is_watched(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "BEAT", 0.4)
    path = tmp_path / "RUN.lock"
    write_foreign(path, silent=0)
    beat = threading.Timer(0.5, os.utime, [path])
    beat.start()
    with pytest.raises(RunDirError, match="process 1 on far"):  # it lives
        RunLock(tmp_path).__enter__()
    beat.join()
    began = time.monotonic()
    with RunLock(tmp_path):  # it was killed a moment ago
        assert time.monotonic() - began > 1
        assert "no heartbeat while it was watched for 1 s" in caplog.text


def test_number_of_a_dead_process_used_again(tmp_path):
    """A restarted container has the old host name and process number, but not the old birth."""
    path = tmp_path / "RUN.lock"
    write_foreign(path, silent=0, machine=lock._machine(), pid=os.getpid(), born="1")
    with RunLock(tmp_path):
        assert json.loads(path.read_text())["born"] != "1"


def test_clock_of_the_file_system_decides(tmp_path, monkeypatch):
    """A machine whose clock is ahead takes no living lock over."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    path, now = tmp_path / "RUN.lock", time.time
    write_foreign(path, silent=0)
    monkeypatch.setattr(lock.time, "time", lambda: now() + 3600)
    beat = threading.Timer(0.1, os.utime, [path])
    beat.start()
    with pytest.raises(RunDirError, match="process 1 on far"):
        RunLock(tmp_path).__enter__()
    beat.join()


def unsupported(*arguments, **options):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.faults(8)
def test_file_systems_without_links_and_times(tmp_path, monkeypatch, fault_row):
    """As mounted buckets are: locks are made, put back and renewed all the same."""
    path = tmp_path / "RUN.lock"
    write_foreign(path, silent=1000)
    judged = lock._read(path)
    write_foreign(path, silent=0, token="faster")
    os.utime(path, (0, 0))
    monkeypatch.setattr(os, "link", unsupported)
    monkeypatch.setattr(os, "utime", unsupported)
    assert not RunLock(tmp_path)._remove(judged)
    assert lock._read(path)["token"] == "faster" and os.listdir(tmp_path) == ["RUN.lock"]
    path.unlink()
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with RunLock(tmp_path):
        before = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns > before)
        with pytest.raises(RunDirError, match=f"process {os.getpid()}"):
            RunLock(tmp_path).__enter__()
    fault_row(
        injected="a lock where there are no links and times cannot be set, as in a mounted bucket",
        happened="made only if absent, renewed by writing it again; the second start names the "
        "holder",
        exit_code=RunDirError.code,
    )


def test_a_home_of_nobody_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirError, match="there is no such user"):
        lock.prepare_run_dir("~nobody_of_that_name/run")
    assert lock.prepare_run_dir("./~mine") == tmp_path / "~mine"


def test_half_written_lock_counts_as_held(tmp_path):
    (tmp_path / "RUN.lock").write_text('{"host"')
    with pytest.raises(RunDirError, match="unknown process"):
        RunLock(tmp_path).__enter__()


def test_takeover_does_not_remove_the_lock_of_a_faster_one(tmp_path):
    path = tmp_path / "RUN.lock"
    write_foreign(path, silent=1000)
    judged = lock._read(path)
    write_foreign(path, silent=0, token="faster")
    assert not RunLock(tmp_path)._remove(judged)
    assert lock._read(path)["token"] == "faster"
    assert os.listdir(tmp_path) == ["RUN.lock"]


def test_heartbeat_and_loss_of_the_lock(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    path = tmp_path / "RUN.lock"
    with RunLock(tmp_path) as held:
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 0)
        held.check()
        other = tmp_path / "other"
        write_foreign(other, silent=0)
        os.replace(other, path)
        wait_until(lambda: "taken over" in caplog.text)
        with pytest.raises(RunDirError, match="taken over by process 1 on far"):
            held.check()
    assert path.exists()  # it is theirs
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.faults(7)
def test_run_directory_is_made_absolute_or_refused(tmp_path, monkeypatch, fault_row):
    monkeypatch.chdir(tmp_path)
    assert prepare_run_dir("runs/x") == tmp_path / "runs" / "x"
    assert os.listdir("runs/x") == []
    fault_row(
        injected="run directory missing, and relative",
        happened="made, with its parents; made absolute",
        exit_code=None,
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot be written: Not a directory"):
        prepare_run_dir(tmp_path / "file" / "run")
    with pytest.raises(RunDirError, match="cannot be written"):
        prepare_run_dir("/proc/run")
    with pytest.raises(RunDirError, match="object stores"):
        prepare_run_dir("gs://bucket/run")


def test_space_for_two_checkpoints(tmp_path):
    check_space(tmp_path, 1000)
    with pytest.raises(RunDirError, match=r"GiB free, two checkpoints need 2097152\.00 GiB"):
        check_space(tmp_path, 2**50)
