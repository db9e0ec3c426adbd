"""Where a run writes: its directory, the cache, the programs that were compiled."""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from flaxlm.data.files import cache_folder
from flaxlm.health.finding import Finding
from flaxlm.health.machine import gib

_LITTLE = 2**30  # free bytes under which even a small run may end early
_PROGRAMS = 20 * 2**30  # bytes of compiled programs of which most are old
_SKEW = 60.0  # seconds; a run whose heartbeat looks 300 s old is taken for dead
_SLOW = 1.0  # seconds for a few kilobytes
_PASSING = {
    "tmpfs": "it is memory, and empty after a restart",
    "ramfs": "it is memory, and empty after a restart",
    "overlay": "it goes when the container goes",
}
_ADVICE = {
    errno.EACCES: "choose another, or give yourself the right to write there",
    errno.EPERM: "choose another, or give yourself the right to write there",
    errno.EROFS: "choose another: that file system is mounted read-only",
    errno.ENOSPC: "make room there, or choose another",
    errno.EDQUOT: "your quota there is used up: make room, or choose another",
    errno.ENOTDIR: "choose another: part of that path is a file",
}


def writable(what: str, path: str | Path, *, code: int, root: Path = Path("/")) -> list[Finding]:
    """Try a folder the way a run uses it; what the trial wrote is removed, nothing else is touched.

    Args:
      what: the name of the check.
      path: the folder; where it does not exist, the nearest one above that does is tried.
      code: of the finding that it cannot be written.
    """
    if "://" in str(path):
        advice = "mount the bucket (gcsfuse) and give the folder"
        return [Finding(what, f"{path}: object stores are not supported", advice, code)]
    folder = existing(path)
    there = str(Path(os.path.expanduser(path)).absolute())
    there += "" if str(folder) == there else f" (to be made in {folder})"
    try:
        seconds, skew = probe(folder)
    except OSError as error:
        advice = _ADVICE[error.errno] if error.errno in _ADVICE else "choose another"
        return [Finding(what, f"{there} cannot be written: {error.strerror}", advice, code)]
    kind = file_system(folder, root)
    free = shutil.disk_usage(folder).free
    little = "make room, or choose another" if free < _LITTLE else ""
    findings = [Finding(what, f"{there}: {kind}, {gib(free)} free", little)]
    nodes = os.statvfs(folder)
    if nodes.f_files and nodes.f_favail < 1000:
        text = f"{folder}: only {nodes.f_favail} more files"
        findings.append(Finding(what, text, "remove small files: df -i"))
    if kind in _PASSING:
        text = f"{folder} is {kind}: {_PASSING[kind]}"
        findings.append(Finding(what, text, "keep runs on a disk that stays"))
    if seconds > _SLOW:
        text = f"{folder}: writing a small file took {seconds:.1f} s"
        findings.append(Finding(what, text, "choose a nearer disk, or save less often"))
    if abs(skew) > _SKEW:
        text = f"the clock of {folder} differs from this machine's by {skew:+.0f} s"
        advice = "set both by NTP: a run's heartbeat is a time of that file system"
        findings.append(Finding(what, text, advice))
    return findings


def holder(path: str | Path) -> Iterator[Finding]:
    """Whether a run holds the directory (RUN.lock). Only reads."""
    lock = Path(os.path.expanduser(path)) / "RUN.lock"
    if lock.is_file():
        owner = json.loads(lock.read_text(encoding="utf-8"))
        age = time.time() - lock.stat().st_mtime
        text = f"held by process {owner['pid']} on {owner['host']}, heartbeat {age:.0f} s ago"
        advice = "a second start is refused with 73, unless that process is gone"
        yield Finding("run directory", text, advice)


def programs(environ: Mapping[str, str]) -> Finding:
    """Where compiled programs are kept, and how much that is."""
    name = "JAX_COMPILATION_CACHE_DIR"
    folder = Path(environ[name]) if environ.get(name) else cache_folder() / "programs"
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    text = f"{folder}: {len(files)} files, {gib(size)}"
    advice = f"rm -r {folder}: what is needed is compiled again" if size > _PROGRAMS else ""
    return Finding("programs", text, advice)


def existing(path: str | Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    folder = Path(os.path.expanduser(path)).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def probe(folder: Path) -> tuple[float, float]:
    """(seconds, clock of the file system minus ours) of writing, renaming and removing a file.

    Raises:
      OSError: it cannot be done.
    """
    began, token = time.monotonic(), secrets.token_hex(4)
    first, second = folder / f".probe-{token}", folder / f".probe-{token}-renamed"
    try:
        with open(first, "xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        skew = first.stat().st_mtime - time.time()
        first.rename(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    return time.monotonic() - began, skew


def file_system(folder: Path, root: Path = Path("/")) -> str:
    """The kind of file system that a folder is on, such as ext4 or nfs4; "disk" if not known."""
    best = ("", "disk")
    try:
        mounts = (root / "proc/mounts").read_text().splitlines()
    except OSError:
        mounts = []
    for line in mounts:
        place, kind = line.split()[1:3]
        if folder.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]
