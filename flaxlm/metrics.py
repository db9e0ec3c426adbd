"""What a run writes as it runs: metrics.jsonl and TensorBoard events; and how fast it is.

    metrics.jsonl   {"step": 20, "kind": "train", "time": 1764.2, "loss": 5.31, "lr": 0.0006, ...}

One JSON object per line, in the order of the steps. JSON has no NaN and no infinity: they are
written as the strings "nan", "inf" and "-inf", and read back by `float`. Steps count from 1.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from flaxlm.console import Console
from flaxlm.errors import StorageError

FILE = "metrics.jsonl"

# Dense bf16 matrix FLOP/s of one jax device, by words of its kind; the first that is found counts.
# fp16 where the chip has no bf16. TPU: cloud.google.com/tpu/docs, one page per version; v2, v3 and
# 7x show each chip as two devices. GPU: NVIDIA's data sheets, figures "with sparsity" halved.
_PEAKS = (
    ("tpu v2", 22.5e12),
    ("tpu v3", 61.5e12),
    ("tpu v4 lite", 138e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),  # what v5p is called by most versions of jax
    ("tpu v6e", 918e12),
    ("tpu v6 lite", 918e12),
    ("tpu7x", 1153.5e12),
    ("tpu v7", 1153.5e12),
    ("b200", 2250e12),
    ("h200 nvl", 835e12),
    ("h200", 989.4e12),
    ("h100 nvl", 835e12),
    ("h100 pcie", 756e12),
    ("h100", 989.4e12),
    ("a100", 312e12),
    ("l4", 121e12),
    ("a10", 125e12),
    ("v100-pcie", 112e12),
    ("v100", 125e12),
    ("t4", 65e12),
)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s that one device of `jax.Device.device_kind` can reach, or None if that is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
    (989400000000000.0, 197000000000000.0, None)
    """
    # Whole words, so that an L40 is no L4 and an A10G no A10.
    kind = f" {device_kind.lower()} ".replace("-", " ")
    for name, peak in _PEAKS:
        if f" {name.replace('-', ' ')} " in kind:
            return peak
    return None


def total_peak(mesh) -> float | None:
    """FLOP/s of all devices of a mesh together, None if one of them is not known."""
    peaks = [peak_flops(device.device_kind) for device in mesh.devices.flat]
    return sum(peaks) if all(peaks) else None


class Meter:
    """Speed between two metric lines.

        meter = Meter(flops=..., peak=...)
        for step in ...:
            with meter.waiting():
                batch = next(batches)
            ...
            meter.step()
            if it is time: values |= meter.read(tokens=...)

    Args:
      flops: of the model for one step over the whole global batch, or None if not known; may be
        set anew after a `read`.
      peak: FLOP/s of all devices together, or None if not known; without it no mfu is claimed.
    """

    def __init__(self, *, flops: float | None = None, peak: float | None = None):
        self.flops, self._peak = flops, peak
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: after a compilation, an evaluation, a save."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def step(self) -> None:
        self._steps += 1

    def read(self, *, tokens: float) -> dict[str, float]:
        """The speed since the last `read` or `restart`, which it also is; {} if no step was made.

        Args:
          tokens: of one step that are not padding, over the whole global batch.

        Returns:
          tokens_per_second, seconds_per_step, data_wait (share of the time), and mfu (share of the
          peak) where it can be known.
        """
        seconds, steps = time.perf_counter() - self._start, self._steps
        waited = self._waited
        self.restart()
        if not steps:
            return {}
        speed = {
            "tokens_per_second": tokens * steps / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait": waited / seconds,
        }
        if self.flops and self._peak:
            speed["mfu"] = self.flops * steps / seconds / self._peak
        return speed


class MetricsWriter:
    """Writes the metrics of a run, from process 0 alone. A context manager.

    Args:
      directory: the run directory; metrics.jsonl and the folder tensorboard lie in it.
      steps: of the whole run.
      first_step: the first step this process will write. What an earlier process wrote at or after
        it is cut off, so the file reads as one straight run.
      active: False on all processes but the first: nothing is written.
      console: where lines or the bar go; default the standard output.

    Raises:
      StorageError: if a file cannot be written.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        steps: int,
        first_step: int = 1,
        active: bool = True,
        console: TextIO | None = None,
    ):
        self._steps = steps
        self._active = active
        if not active:
            return
        from tensorboardX import SummaryWriter

        self._path = Path(directory) / FILE
        self._console = Console(steps, sys.stdout if console is None else console)
        try:
            _cut(self._path, first_step)
            self._file = open(self._path, "a", encoding="utf-8")
            purge = {"purge_step": first_step} if first_step > 1 else {}
            self._events = SummaryWriter(str(Path(directory) / "tensorboard"), **purge)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error

    def write(self, step: int, values: Mapping[str, float], *, kind: str = "train") -> None:
        """One line of metrics of step `step`; `kind` is "train" or "eval"."""
        if not self._active:
            return
        now, values = self.record(step, values, kind=kind)
        try:
            for name, value in values.items():
                if math.isfinite(value):  # TensorBoard has no place for the others
                    self._events.add_scalar(f"{kind}/{name}", value, step, walltime=now)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error
        self._console.line(step, values, kind)

    def record(
        self, step: int, values: Mapping[str, float], *, kind: str
    ) -> tuple[float, dict[str, float]]:
        """One line in the file alone. Returns (time, values) as they were written."""
        now = time.time()
        values = {name: float(value) for name, value in values.items()}
        if not self._active:
            return now, values
        line = {"step": step, "kind": kind, "time": round(now, 3)}
        line |= {name: x if math.isfinite(x) else str(x) for name, x in values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error
        return now, values

    def tick(self, step: int) -> None:
        """Step `step` was dispatched: moves the bar on a terminal."""
        if self._active:
            self._console.tick(step)

    def say(self, text: str) -> None:
        """A line for people, in the file nowhere."""
        if self._active:
            self._console.say(text)

    def close(self) -> None:
        if self._active:
            self._console.close()
            self._events.close()
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class Log:
    """The metrics of a loop that never waits: a step's values are read when a later step runs.

    Args:
      rate: learning rate of an update, counted from 0.
      shares: of each source in the rows of so many steps; written as mixture/0, mixture/1, ...
        where there are several.
    """

    def __init__(self, writer: MetricsWriter, meter: Meter, *, rate, shares):
        self.writer, self.meter = writer, meter
        self._rate, self._shares = rate, shares
        self._waiting: tuple[int, Mapping] | None = None

    def later(self, step: int, metrics: Mapping) -> None:
        """Remember the metrics (on the devices) of a step that was dispatched."""
        self._waiting = (step, metrics)

    def write(self) -> None:
        """Write what is remembered; blocks until that step is done."""
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in metrics.items() if name != "evidence"}
        speed = self.meter.read(tokens=values.pop("tokens"))
        shares = self._shares(step)
        mixture = {f"mixture/{at}": share for at, share in enumerate(shares) if len(shares) > 1}
        # A step that was left out is no update: the schedule has not moved.
        rate = float(self._rate(max(step - 1 - int(values["skipped"]), 0)))
        self.writer.write(step, {**values, "lr": rate, **speed, **mixture})


def written(directory: Path | str) -> list[dict]:
    """The metric lines of a run so far, [] if it has none."""
    path = Path(directory) / FILE
    return read_lines(path)[0] if path.exists() else []


def read_lines(path: Path) -> tuple[list[dict], int]:
    """(metric lines, number of torn lines): a killed process can leave one."""
    lines, torn = [], 0
    for raw in path.read_bytes().splitlines():
        line = _parse(raw)
        if line is None:
            torn += 1
        else:
            lines.append(line)
    return lines, torn


def _parse(raw: bytes) -> dict | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    good = isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line
    return line if good else None


def _cut(path: Path, first_step: int) -> None:
    """Drop the lines at or after `first_step` and those that are torn; atomic."""
    if not path.exists():
        return
    kept = []
    for raw in path.read_bytes().splitlines(keepends=True):
        line = _parse(raw)
        if line is not None and line["step"] < first_step and raw.endswith(b"\n"):
            kept.append(raw)
    fresh = path.with_suffix(".tmp")
    with open(fresh, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
