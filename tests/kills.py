"""Runs that are killed at random moments and started again by the same command."""

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flaxlm import manifest
from flaxlm.errors import PeerLost

_AGAIN = {PeerLost.code, -signal.SIGABRT}  # ours, and jax's own where it is faster
Start = Callable[[], Sequence[subprocess.Popen]]  # starts all processes of a run


@dataclass(frozen=True)
class Kill:
    """What a run had when it was killed, and with what it went on.

    Attributes:
      moment: when it was.
      reached: last step of metrics.jsonl, 0 for none.
      kept: newest complete checkpoint, 0 for none.
      resumed: the step after which the next start went on; None if it was killed before it said.
    """

    moment: str
    reached: int
    kept: int
    resumed: int | None


class Started:
    """The processes of a run, and what they say: read all the time, since a full pipe would stop
    them. A context manager that leaves no process.
    """

    def __init__(self, start: Start):
        self.processes = list(start())
        self._readers = ThreadPoolExecutor(len(self.processes))
        self._said = [self._readers.submit(process.stdout.read) for process in self.processes]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()

    def stop(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.wait()
        self._readers.shutdown()

    def wait(self, *, seconds: float) -> list[int]:
        """Their exit codes."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(deadline - time.monotonic(), 0)) for process in self.processes]

    @property
    def said(self) -> list[str]:
        """After their end."""
        return [said.result() for said in self._said]


def run(start: Start, *, seconds: float = 1800) -> list[str]:
    """Start, and wait until all processes are done; what they said."""
    while True:
        with Started(start) as started:
            codes = started.wait(seconds=seconds)
        if not _asks_again(codes):
            assert set(codes) == {0}, started.said
            return started.said


def run_killed(
    start: Start, directory: Path, *, steps: int, kills: int, opening: float, seed: int = 0
) -> list[Kill]:
    """Run until all steps are done, with `kills` SIGKILLs on the way.

    A quarter of them comes at any time of the first `opening` seconds of a start (imports, restore,
    compilation), the others up to 0.2 s after a random step: in a step, an evaluation, a save, the
    last words. Of several processes all are killed, or one, and the others must end by themselves.
    """
    moments = random.Random(seed)
    early = set(moments.sample(range(kills), kills // 4))
    targets = iter(sorted(moments.sample(range(1, steps), kills - len(early))))
    found, resumed = [], []
    for number in range(kills):
        target = None if number in early else next(targets)
        pause = moments.random() * (opening if target is None else 0.2)
        reaches = False
        while not reaches:
            with Started(start) as started:
                reaches = target is None or _reaches(started, directory, target)
                if reaches:
                    _sleep(pause, directory, steps if target is not None else reached(directory))
                    struck = moments.choice([started.processes, *([x] for x in started.processes)])
                    for process in struck:
                        process.send_signal(signal.SIGKILL)
                    codes = started.wait(seconds=600)
        assert {process.returncode for process in struck} == {-signal.SIGKILL}, started.said
        assert set(codes) <= {-signal.SIGKILL, *_AGAIN}, (codes, started.said)
        after = "the start" if target is None else f"step {target}"
        moment = f"{pause:.2f} s after {after}"
        found.append((moment, reached(directory), newest_complete(directory)))
        resumed.append(_resumed(started.said))
    resumed.append(_resumed(run(start)))
    return [Kill(*facts, after) for facts, after in zip(found, resumed[1:], strict=True)]


def assert_little_was_lost(kills: Sequence[Kill], *, save_every: int) -> None:
    """Every start went on from the newest complete checkpoint, and that is the last one that was
    due, or the one before if the last was being written.
    """
    for kill in kills:
        # More if a start on the way lost a process, and was started again.
        assert kill.resumed is None or kill.resumed >= kill.kept, kill
        assert kill.kept >= kill.reached - 2 * save_every, kill


def reached(directory: Path) -> int:
    """The last step whose training metrics are written, 0 for none."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(end - 4096, 0))
            lines = file.read().split(b"\n")[int(end > 4096) : -1]  # whole lines
    except FileNotFoundError:
        return 0
    found = [json.loads(line) for line in lines]
    return max((line["step"] for line in found if line["kind"] == "train"), default=0)


def newest_complete(directory: Path) -> int:
    """The newest checkpoint that is complete on disk, 0 for none."""
    found = (path.parent.name for path in (directory / "checkpoints").glob(f"*/{manifest.NAME}"))
    return max((int(name) for name in found if name.isdecimal()), default=0)


def _reaches(started: Started, directory: Path, step: int) -> bool:
    """Wait until the metrics of `step` are written; False if the run asks to be started again."""
    deadline = time.monotonic() + 1800  # the machine may have much other work
    while reached(directory) < step:
        codes = [process.poll() for process in started.processes]
        if any(code is not None for code in codes):
            codes = started.wait(seconds=600)
            started.stop()
            assert _asks_again(codes), f"ended with {codes} before step {step}: {started.said}"
            return False
        assert time.monotonic() < deadline, f"step {step} was never reached"
        time.sleep(0.01)
    return True


def _sleep(seconds: float, directory: Path, step: int) -> None:
    """Sleep, but no longer than until a step after `step` is written: this start may be faster than
    the one it was measured by.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and reached(directory) <= step:
        time.sleep(0.01)


def _asks_again(codes: Sequence[int]) -> bool:
    """Whether the processes lost one another. On a busy machine they may, as gloo waits for no more
    than 30 seconds; whoever launches a run starts it again then.
    """
    return len(codes) > 1 and set(codes) <= _AGAIN


def _resumed(said: Sequence[str]) -> int | None:
    """The step after which processes that said this went on."""
    found = re.search(r", (?:resumed after step (\d+)|from the start)$", said[0], re.MULTILINE)
    return int(found[1] or 0) if found else None
