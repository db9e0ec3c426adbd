"""Contenders in processes of their own that make steps when asked to.

A machine whose speed drifts is equally unkind to all who take turns, and none of them shares a
process, an allocator or a thread pool with another.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# What each contender is made of; "slots": computes logits at the predicted positions alone.
CONTENDERS = {
    "flaxlm": dict(scan=False),
    "flaxlm scanned": dict(scan=True),
    "torch eager": dict(compiled=False, gathered=False),
    "torch compiled": dict(compiled=True, gathered=False),
    "torch eager, slots": dict(compiled=False, gathered=True),
    "torch compiled, slots": dict(compiled=True, gathered=True),
}


def is_ours(name: str) -> bool:
    return name.startswith("flaxlm")


def missing(name: str) -> str:
    """The packages that a contender needs and that are not installed."""
    needed = () if is_ours(name) else ("torch", "transformers")
    return " and ".join(module for module in needed if importlib.util.find_spec(module) is None)


def serve(name: str, shape: dict) -> None:
    """A worker: says that it is ready, then serves requests on stdin, which are a number of steps
    to make or a folder to leave a profile in.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # libraries print to stdout too
    os.dup2(2, 1)

    def say(**words):
        print(json.dumps(words), file=out, flush=True)

    writes = "new" in shape  # new tokens: a step generates them
    if is_ours(name):
        from . import ours, ours_writing

        side = ours_writing if writes else ours
    else:
        from . import torchs, torchs_writing

        side = torchs_writing if writes else torchs
    start = time.perf_counter()
    step = side.Step(shape, **CONTENDERS[name])
    loss = step.run(2)
    say(
        start=time.perf_counter() - start, loss=loss, parameters=step.parameters, flops=step.flops,
        device=step.device(),
    )  # fmt: skip
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, str):
            import jax

            with jax.profiler.trace(request):
                step.run(3)
            say(steps=3)
            continue
        step.run(1)  # while others had their turn the system may have taken this process's memory
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step.run(request)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        say(wall=wall / request, cpu=cpu / request, loss=loss, peak=step.peak_bytes())


class Contender:
    """A worker process. `ready` is what it said when its first two steps were made, or None where
    it ended instead; its own words are then on stderr.
    """

    def __init__(self, name: str, shape: dict, environment: dict[str, str], python=sys.executable):
        code = (
            "import json, sys; from steps import turns; "
            "turns.serve(sys.argv[1], json.loads(sys.argv[2]))"
        )
        here = str(Path(__file__).resolve().parent.parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [python, "-c", code, name, json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        )
        line = self._process.stdout.readline()
        self.ready = json.loads(line) if line else None
        self.turns = []

    def take_turn(self, steps: int) -> None:
        """Appends {wall, cpu: seconds a step, loss, peak: bytes or None} to `turns`."""
        self.turns.append(self._ask(steps))

    def profile(self, folder: str) -> int:
        """Leaves a profile of flaxlm's step there; returns the number of steps in it."""
        return self._ask(folder)["steps"]

    def seconds(self, clock: str = "wall") -> list[float]:
        """Seconds a step of every turn, by the clock "wall" or "cpu"."""
        return [turn[clock] for turn in self.turns]

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a contender ended in the middle of its turn; see above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
