"""Processors, memory, limits of processes, and the clock."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from flaxlm.health.finding import Finding

_LITTLE = 2 * 2**30  # bytes of free memory under which the smallest experiments run short
_FILES = 1024  # open files: shards, checkpoints of many parts, sockets
_BORN = datetime(2026, 1, 1, tzinfo=UTC)  # flaxlm is younger than this


def memory(root: Path = Path("/")) -> Finding:
    """Free memory of this machine, or of the container that this process is in."""
    import psutil

    found = psutil.virtual_memory()
    free, total = found.available, found.total
    limit, used = container_memory(root)
    where = ""
    if limit is not None and limit < total:
        free, total, where = min(free, limit - used), limit, " of this container"
    text = f"{gib(free)} of {gib(total)} free{where}"
    if free < _LITTLE:
        return Finding("memory", text, "what takes it: ps aux --sort=-rss | head")
    return Finding("memory", text)


def container_memory(root: Path = Path("/")) -> tuple[int | None, int]:
    """(limit, used) bytes of the control group of this process; (None, 0) without a limit."""
    best: tuple[int | None, int] = (None, 0)
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current")
        if kinds:
            if "memory" not in kinds.split(","):
                continue
            base, names = base / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = base / path.lstrip("/")
        # A group inside a container is at the root of what it sees; limits of parents bind as well.
        for folder in {
            base,
            group,
            *(parent for parent in group.parents if base in parent.parents),
        }:
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None and (best[0] is None or limit < best[0]):
                best = limit, used
    return best


def processors(root: Path = Path("/")) -> Finding:
    """How many of the cores this process may use."""
    everything = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everything
    share = _lines(root / "sys/fs/cgroup/cpu.max")
    text = f"{mine} of {everything} cores"
    if share and (words := share[0].split())[0] != "max":
        text += f", {int(words[0]) / int(words[1]):g} by the container's quota"
    return Finding("processors", text)


def limits(current: dict[str, int] | None = None) -> Iterator[Finding]:
    """Limits of the shell (ulimit) that stop a run.

    Args:
      current: {"files", "size", "memory": limit, -1 for none}; default: of this process.
    """
    if current is None:
        import resource

        kinds = {"files": "NOFILE", "size": "FSIZE", "memory": "AS"}
        current = {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))[0]
            for name, kind in kinds.items()
        }
    if 0 <= current["files"] < _FILES:
        yield Finding("limits", f"{current['files']} open files", "ulimit -n 65536")
    if current["size"] >= 0:
        text = f"files of at most {gib(current['size'])}: larger checkpoints fail"
        yield Finding("limits", text, "ulimit -f unlimited")
    if current["memory"] >= 0:
        text = f"{gib(current['memory'])} of addresses: jax reserves more than it uses"
        yield Finding("limits", text, "ulimit -v unlimited")


def clock(now: float | None = None) -> Finding:
    """Whether the time can be true."""
    told = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    text = f"{told:%Y-%m-%d %H:%M} UTC"
    if told < _BORN:
        advice = "timedatectl set-ntp true: certificates, heartbeats and make depend on it"
        return Finding("clock", f"{text}, which is in the past", advice)
    return Finding("clock", text)


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:,.0f} GiB"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None
