"""A run that hangs ends, and leaves behind where it hung.

A process whose peer is suspended, or whose storage does not answer, waits for ever in a collective
or in a read. A launcher sees a run that is alive. So a thread watches the ledger of the main thread
(`goodput.Ledger`): if nothing moved for too long, it writes the stacks of all threads to the run
directory and to the standard error and ends the process with 71, which means: start me again.

Too long is, in the steps, the longer of `run.patience` and ten times the median step; in what takes
its time (a compilation, an evaluation, a checkpoint, the start), fifteen times `run.patience`.
"""

import faulthandler
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from flaxlm.errors import PeerLost
from flaxlm.goodput import Ledger

_STEPS = 10  # times the median step
_BUSY = 15  # times the patience, where no step is being made
_FAREWELL = 10.0  # seconds for the last words


class Watchdog:
    """Context manager that ends the process when `ledger` does not move.

    Args:
      patience: seconds, 0 to watch nothing.
      directory: where stacks-PROCESS.txt is written.
      process: number of this process.
      last: called before the end.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        patience: float,
        directory: Path,
        process: int = 0,
        last: Callable[[], None] = lambda: None,
    ):
        self._ledger, self._patience, self._last = ledger, patience, last
        self._path, self._process = directory / f"stacks-{process}.txt", process
        self._stop = threading.Event()

    def limit(self) -> float:
        """Seconds without a move that are allowed now."""
        if self._ledger.use not in ("steps", "data"):
            return _BUSY * self._patience
        recent = list(self._ledger.recent)
        return max(self._patience, _STEPS * statistics.median(recent) if recent else 0.0)

    def __enter__(self):
        if self._patience > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._stop.set()

    def _watch(self) -> None:
        pause = min(self._patience / 10, 5.0)
        awake = looked = time.monotonic()
        while not self._stop.wait(pause):
            now = time.monotonic()
            if now - looked > 3 * pause + 1:
                awake = now  # this process itself was suspended: the main thread is given time
            looked = now
            silent = now - max(self._ledger.moved, awake)
            if silent > self.limit():
                self._end(silent)

    def _end(self, silent: float) -> None:
        text = (
            f"process {self._process} on {socket.gethostname()}: nothing moved for {silent:.0f} s "
            f"during {self._ledger.use} (allowed: {self.limit():.0f} s)"
        )
        print(f"flaxlm: {text}; stacks of all threads:", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)

        def keep():
            with open(self._path, "w", encoding="utf-8") as file:
                print(text, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            self._last()

        abandon(f"{text}; its stacks are in {self._path}", last=keep)


def abandon(message: str, *, last: Callable[[], None]) -> NoReturn:
    """Say why and end this process with 71, without waiting for anybody.

    Args:
      last: called before the end, and given ten seconds.
    """
    # What hangs may be the storage that `last` writes to.
    thread = threading.Thread(target=last, name="abandon", daemon=True)
    thread.start()
    thread.join(_FAREWELL)
    print(f"flaxlm: {message}", file=sys.__stderr__, flush=True)
    os._exit(PeerLost.code)
