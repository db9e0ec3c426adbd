"""The run directory: probed in the first second, large enough, and owned by one run at a time."""

import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from pathlib import Path

from flaxlm.errors import Refused, RunDirError
from flaxlm.processes import from_first

log = logging.getLogger(__name__)

BEAT = 30.0  # seconds between heartbeats
WATCH = 3  # heartbeats for which a holder on another machine is watched
STALE = (
    300.0  # seconds without a heartbeat after which a lock on an unreachable machine is taken over
)


def prepare_run_dir(path: str | Path) -> Path:
    """Make `path` if it is missing, check that files can be written there, and return it absolute.

    Raises:
      RunDirError: if it cannot be made or written, or is a URL.
      Refused: if this user may not write there.
    """
    if "://" in str(path):
        raise RunDirError(
            f"run directory {path}: object stores are not supported, mount it and give the folder"
        )
    home = os.path.expanduser(path)
    if home.startswith("~"):
        raise RunDirError(f"run directory {path}: there is no such user; ./~... is a folder here")
    directory = Path(home).absolute()
    probe = directory / f".probe-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        kind = Refused if isinstance(error, PermissionError) else RunDirError
        raise kind(
            f"run directory {directory} cannot be written: {error.strerror}; "
            "choose another with --run.directory=PATH"
        ) from None
    return directory


def check_space(directory: str | Path, checkpoint_bytes: int) -> None:
    """Check that two checkpoints fit: a new one is complete before the oldest goes.

    Args:
      directory: existing run directory.
      checkpoint_bytes: of one checkpoint, uncompressed.

    Raises:
      RunDirError: with the numbers, if they do not.
    """
    free = shutil.disk_usage(directory).free
    if free < 2 * checkpoint_bytes:
        raise RunDirError(
            f"run directory {directory} has {free / 2**30:.2f} GiB free, two checkpoints need "
            f"{2 * checkpoint_bytes / 2**30:.2f} GiB; free some space or choose another with "
            "--run.directory=PATH"
        )


class RunLock:
    """RUN.lock: one run per directory, told apart from one that died.

    A context manager. Process 0 holds the lock and renews its heartbeat; when it is refused, all
    processes are. A lock is taken over, with a log line, when its process is known to be dead
    (same machine), has not renewed its heartbeat for five minutes, or does not renew it while this
    process watches for three heartbeats: a run that is started again on another machine has not
    lost its directory.

    Raises on entry:
      RunDirError: naming the holder.
    """

    def __init__(self, directory: str | Path):
        self.path = Path(directory).absolute() / "RUN.lock"
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "token": secrets.token_hex(8),
        }
        self._held = False
        self._taken_by = ""
        self._stop = threading.Event()

    def __enter__(self):
        from_first(self._acquire)
        return self

    def __exit__(self, *exception):
        self.release()

    def release(self) -> None:
        """Give the lock back, on process 0. Not collective: for a process that ends alone."""
        self._stop.set()
        if self._held and (_read(self.path) or {}).get("token") == self._owner["token"]:
            self.path.unlink(missing_ok=True)
        self._held = False

    def check(self) -> None:
        """Cheap; to be called before writing.

        Raises:
          RunDirError: if this process was suspended for so long that another run took over.
        """
        if self._taken_by:
            raise RunDirError(
                f"{self.path.parent} was taken over by {self._taken_by} while this run was "
                "suspended; it writes no more"
            )

    def _acquire(self) -> None:
        while not _create(self.path, json.dumps(self._owner).encode()):
            holder = _read(self.path)
            reason = _dead(self.path, holder) or self._watch(holder)
            if reason is None:
                raise RunDirError(
                    f"run directory {self.path.parent} is in use by {_name(holder)}: wait for it, "
                    f"stop it, or choose another directory (the lock is {self.path.name})"
                )
            if self._remove(holder):
                log.warning("taking over %s from %s: %s", self.path, _name(holder), reason)
        self._held = True
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def _watch(self, holder: dict | None) -> str | None:
        """Why a holder on another machine is dead, None if it lives or is on this one."""
        if holder is None or holder["machine"] == _machine():
            return None
        log.warning(
            "%s is held by %s: watching its heartbeat for %.0f s", self.path, _name(holder),
            WATCH * BEAT,
        )  # fmt: skip
        seen, end = _renewed(self.path), time.monotonic() + WATCH * BEAT
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT / 10))
            if (now := _renewed(self.path)) is None:
                return "it is gone"
            if now != seen:
                return None
        return f"no heartbeat while it was watched for {WATCH * BEAT:.0f} s"

    def _remove(self, holder: dict | None) -> bool:
        """Remove the lock that was judged dead, and no other one, should someone else be faster."""
        moved = self.path.with_name(f"RUN.lock.{self._owner['token']}")
        try:
            os.rename(self.path, moved)
        except FileNotFoundError:
            return False
        same = _read(moved) == holder
        if not same:
            self._put_back(moved)
        moved.unlink()
        return same

    def _put_back(self, moved: Path) -> None:
        try:
            os.link(moved, self.path)
        except FileExistsError:
            pass
        except OSError:  # mounted buckets have no links; while it is empty it counts as held
            _create(self.path, moved.read_bytes())

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            holder = _read(self.path)
            if holder is not None and holder["token"] != self._owner["token"]:
                self._taken_by = _name(holder)
                log.error(
                    "%s was taken over by %s: this run will write no more",
                    self.path,
                    self._taken_by,
                )
                return
            try:
                self._renew()
            except OSError as error:
                log.warning("no heartbeat could be written to %s: %s", self.path, error.strerror)

    def _renew(self) -> None:
        try:
            os.utime(self.path)
        except OSError:  # where times cannot be set, as in some mounted buckets: the same again
            with open(self.path, "r+b") as file:
                file.write(json.dumps(self._owner).encode())


def _create(path: Path, content: bytes) -> bool:
    """Make a file; False if there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunDirError(f"{path} cannot be created: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True


def _dead(path: Path, holder: dict | None) -> str | None:
    """Why the holder of the lock cannot be alive; None if it may be."""
    if holder is not None and holder["machine"] == _machine():
        born = _born(holder["pid"])
        if born is None or born != holder["born"]:
            return "its process is gone"
        return None
    renewed = _renewed(path)
    if renewed is None:
        return "it is gone"
    silent = _now(path.parent) - renewed
    return f"no heartbeat for {silent:.0f} s" if silent > STALE else None


def _renewed(path: Path) -> float | None:
    """When the heartbeat of a lock was last renewed, None if there is no lock."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _now(directory: Path) -> float:
    """The time by the clock of the file system, which need not be that of this machine."""
    probe = directory / f".probe-{secrets.token_hex(4)}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _read(path: Path) -> dict | None:
    """Contents of a lock; None while they are being written."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return (
        holder
        if isinstance(holder, dict) and {"host", "pid", "machine", "born", "token"} <= set(holder)
        else None
    )


def _name(holder: dict | None) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "an unknown process"


def _machine() -> str:
    """Where a process number has a meaning: host, boot and process namespace (of a container)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When process `pid` started, to tell it from a later one; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie holds nothing
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc (macOS): alive or not is all that can be known
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
