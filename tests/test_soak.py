"""A long run in miniature: many evaluations, saves and kills; nothing grows, and in the end it is
the straight run, bit for bit.

Here short. 2,000 steps, 200 evaluations, 50 saves and 20 kills, five minutes on two idle cores,
with the numbers that are in docs/reliability.md:

    FLAXLM_SOAK=2000 pytest -s tests/test_soak.py
"""

import os
import statistics
import threading
import time
from dataclasses import dataclass

import psutil
import pytest

from tests import equal, kills, runs

STEPS = int(os.environ.get("FLAXLM_SOAK", "100"))
EVERY = {"eval_every": 10, "save_every": 40, "log_every": 1}
KILLS = STEPS // 100
# From the first third of a segment to the last. A save in flight has threads and files of its own;
# a leak of one in every save would show as 17.
GROWTH, MORE = 1.05, 10


@dataclass(frozen=True)
class Sample:
    """A process at one moment: the step it has reached, bytes resident, threads, open files."""

    step: int
    memory: int
    threads: int
    files: int


class Segments:
    """What the first process of every start held, ten times a second, from its first step on."""

    def __init__(self, start, directory):
        self._start, self._directory = start, directory
        self.segments: list[list[Sample]] = []

    def __call__(self):
        processes = self._start()
        self.segments.append([])
        threading.Thread(
            target=self._watch, args=(psutil.Process(processes[0].pid), self.segments[-1])
        ).start()
        return processes

    def _watch(self, process, samples):
        before = kills.reached(self._directory)
        try:
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                step = kills.reached(self._directory)
                if step != before:  # else it is still starting
                    before = 0
                    held = process.memory_info().rss, process.num_threads(), process.num_fds()
                    samples.append(Sample(step, *held))
                time.sleep(0.1)
        except psutil.NoSuchProcess:
            pass

    def thirds(self, *, least: int):
        """(first, last): medians over the first and the last third of the steps, for every segment
        with at least so many between its first save, which starts threads, and its end.
        """
        for samples in self.segments:
            if not samples:
                continue
            begin = samples[0].step + EVERY["save_every"]
            samples = [sample for sample in samples if begin < sample.step < STEPS]
            if not samples or samples[-1].step - begin < least:
                continue
            third = (samples[-1].step - begin) / 3
            first = [x for x in samples if x.step <= begin + third]
            last = [x for x in samples if x.step >= begin + 2 * third]
            if first and last:
                yield _median(first), _median(last)


def _median(samples) -> Sample:
    names = ("step", "memory", "threads", "files")
    return Sample(*(statistics.median(getattr(x, name) for x in samples) for name in names))


@pytest.mark.slow
def test_soak(text_file, data_cache, tmp_path):
    numbers = [f"--run.steps={STEPS}", *(f"--run.{name}={n}" for name, n in EVERY.items())]
    watched = {}
    for name in ("straight", "killed"):
        argv = runs.arguments(text_file, tmp_path / name, *numbers)
        watched[name] = Segments(lambda argv=argv: [runs.start(argv, data_cache)], tmp_path / name)
    began = time.time()
    kills.run(watched["straight"])
    opening = runs.metrics(tmp_path / "straight")[0]["time"] - began
    found = kills.run_killed(
        watched["killed"], tmp_path / "killed", steps=STEPS, kills=KILLS, opening=opening
    )
    kills.assert_little_was_lost(found, save_every=EVERY["save_every"])
    for name, segments in watched.items():
        for first, last in segments.thirds(least=STEPS // 8):
            print(f"{name}: steps {first.step:g} and {last.step:g}: {first} {last}")
            assert last.memory <= GROWTH * first.memory, (name, first, last)
            assert last.threads <= first.threads + MORE, (name, first, last)
            assert last.files <= first.files + MORE, (name, first, last)
    for kill in found:
        print(kill)
    straight, killed = (equal.fingerprint(tmp_path / name, STEPS) for name in watched)
    assert killed == straight
    evals = len(runs.metrics(tmp_path / "killed", "eval"))
    assert evals == STEPS // EVERY["eval_every"]
    seconds = time.time() - began
    print(f"{STEPS} steps, {evals} evaluations, {len(found)} kills: equal after {seconds:.0f} s")
