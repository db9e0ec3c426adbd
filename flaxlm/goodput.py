"""Goodput: what the wall time of a run went into, over all its starts.

    steps    steps that the run kept             compile  first calls of a program
    data     waiting for a batch                 save     waiting for checkpoints
    eval     held-out evaluations                start    from the command to the first step
    lost     made again after a kill             down     between an end and the next start

metrics.jsonl holds a line of kind "goodput" for every start, every checkpoint and the end, with the
seconds so far. A later start adds to what stands at the step it resumes from, so the cut of the
file at a resume loses no second: they become `lost` and `down`.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from flaxlm.console import format_seconds

KIND = "goodput"  # of the lines
USES = ("steps", "compile", "data", "save", "eval", "start", "lost", "down")
FINISHED = "finished"  # 1 in the line of a run that made all its steps


class Ledger:
    """Where the seconds of this process go: each to exactly one use.

        ledger = Ledger(carried(...))
        ...                                 # counts as start
        ledger.begin()                      # from here on, what is nothing else is steps
        with ledger.during("data"):
            ...
        ledger.stepped()

    Args:
      before: seconds of earlier starts, by use.

    Attributes:
      use: what the main thread does now.
      moved: `time.monotonic()` when that last changed, or a step was done.
      recent: seconds of the last steps, waiting for data included.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        self._seconds = dict.fromkeys(USES, 0.0) | dict(before or {})
        self._base = "start"
        self._stepped = 0.0
        self.use = self._base
        self.moved = time.monotonic()
        self.recent: deque[float] = deque(maxlen=64)

    def add(self, before: Mapping[str, float]) -> None:
        """Add seconds of earlier starts, by use."""
        for use, seconds in before.items():
            self._seconds[use] += seconds

    def again(self) -> None:
        """A new start within this process, which counts from 0 as a new process does."""
        self._turn("start")
        self._base = "start"
        self._seconds = dict.fromkeys(USES, 0.0)

    def begin(self) -> None:
        """The steps begin."""
        self._turn("steps")
        self._base = "steps"
        self._stepped = self._working()

    @contextmanager
    def during(self, use: str) -> Iterator[None]:
        """Seconds inside count as `use`; inside another block, as the inner use alone."""
        outer = self.use
        self._turn(use)
        try:
            yield
        finally:
            self._turn(outer)

    def stepped(self) -> None:
        """A step is done."""
        self._turn(self.use)
        working = self._working()
        self.recent.append(working - self._stepped)
        self._stepped = working

    def seconds(self) -> dict[str, float]:
        """{use: seconds so far}; they add up to the wall time of the run."""
        self._turn(self.use)
        return {use: round(seconds, 3) for use, seconds in self._seconds.items()}

    def _working(self) -> float:
        return self._seconds["steps"] + self._seconds["data"]

    def _turn(self, use: str) -> None:
        assert use in USES, use
        now = time.monotonic()
        self._seconds[self.use] += now - self.moved
        # In this order: the watchdog reads them from its thread.
        self.moved, self.use = now, use


def carried(lines: Iterable[Mapping], *, step: int, now: float) -> dict[str, float]:
    """Seconds of the earlier starts of a run, {} if it has none or did not count them.

    Args:
      lines: of metrics.jsonl, before it is cut.
      step: that the run resumes after.
      now: `time.time()` of this start.
    """
    lines = list(lines)
    ledgers = [line for line in lines if line["kind"] == KIND]
    if not ledgers:
        return {}
    kept = [line for line in ledgers if line["step"] <= step]
    if kept:
        since = kept[-1]["time"]
        found = {use: float(kept[-1][use]) for use in USES}
    else:  # a start from the beginning: nothing was kept
        since, found = lines[0]["time"], dict.fromkeys(USES, 0.0)
    last = lines[-1]
    found["lost"] += max(last["time"] - since, 0.0)
    if FINISHED not in last:  # a run that is prolonged was not down in between
        found["down"] += max(now - last["time"], 0.0)
    return found


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """{use: share of the wall time}, {} if there was none."""
    total = sum(float(seconds[use]) for use in USES)
    return {use: float(seconds[use]) / total for use in USES} if total > 0 else {}


def others(seconds: Mapping[str, float]) -> str:
    """What took more than a thousandth of the wall time beside steps, the largest first."""
    found = shares(seconds)
    rest = sorted((use for use in found if use != "steps"), key=lambda use: -found[use])
    return ", ".join(f"{use} {found[use]:.1%}" for use in rest if found[use] >= 0.001)


def summary(seconds: Mapping[str, float]) -> str:
    """One line for people.

    >>> summary(dict.fromkeys(USES, 0.0) | {"steps": 90.0, "compile": 7.0, "data": 3.0})
    '90.0% of 1:40 in steps; compile 7.0%, data 3.0%'
    """
    wall = sum(float(seconds[use]) for use in USES)
    if not wall:
        return "nothing measured"
    share, rest = float(seconds["steps"]) / wall, others(seconds)
    return f"{share:.1%} of {format_seconds(wall)} in steps" + (f"; {rest}" if rest else "")
