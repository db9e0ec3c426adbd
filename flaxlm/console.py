"""What a person sees of a run: plain lines, or a bar on a terminal; and how numbers are printed."""

import math
import shutil
import time
from collections.abc import Mapping
from typing import TextIO

# What a line shows of a training step, in this order; and what no line shows.
_HEAD = ("loss", "lr", "grad_norm")
_SPEED = ("tokens_per_second", "mfu", "data_wait")
_UNSEEN = ("tokens", "seconds_per_step")


class Console:
    """Metrics for a person: plain lines, or on a terminal a bar with the time that is left."""

    def __init__(self, steps: int, stream: TextIO):
        self._steps, self._stream = steps, stream
        self._bar = stream.isatty()
        self._first: tuple[int, float] | None = None  # step and time of the first tick
        self._drawn = 0.0
        self._last = ""

    def line(self, step: int, values: Mapping[str, float], kind: str) -> None:
        # The terms of the training loss are in the file; a line is to be read at a glance.
        shown = _HEAD + _SPEED if kind == "train" else tuple(values)
        text = format_values({name: value for name, value in values.items() if name in shown})
        if self._bar and kind == "train":
            self._last = text
            self._draw(step)
            return
        name = "" if kind == "train" else f"{kind} "
        self.say(f"step {step}/{self._steps} {name}{text}")

    def say(self, text: str) -> None:
        """A line, in place of the bar until that is drawn again."""
        clear = "\r\x1b[K" if self._bar else ""
        print(f"{clear}{text}", file=self._stream, flush=True)

    def tick(self, step: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)  # the first step is over: compiling does not count
        if self._bar and now - self._drawn > 0.1:
            self._draw(step)

    def _draw(self, step: int) -> None:
        self._drawn = time.monotonic()
        share = step / self._steps
        bar = "#" * int(20 * share)
        eta = ""
        if self._first is not None and step > self._first[0]:
            pace = (self._drawn - self._first[1]) / (step - self._first[0])
            eta = f" eta {format_seconds(pace * (self._steps - step))}"
        text = f"step {step}/{self._steps} [{bar:20}] {share:4.0%}{eta} {self._last}"
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar and self._drawn:
            print(file=self._stream, flush=True)


def format_values(values: Mapping[str, float]) -> str:
    """Metrics in one line: loss, rate and gradient norm first, the speed last.

    >>> format_values({"tokens_per_second": 412e3, "mfu": 0.412, "loss": 2.313, "lr": 9.8e-4})
    'loss 2.313 lr 9.8e-4 412k tok/s mfu 41.2%'
    """
    words = []
    order = [name for name in _HEAD if name in values]
    order += [name for name in values if name not in _HEAD + _SPEED + _UNSEEN]
    for name in order:
        value = values[name]
        if name == "lr":
            words.append(f"lr {_tidy(f'{value:.1e}')}")
        elif name == "grad_norm":
            words.append(f"grad_norm {_tidy(f'{value:.3g}')}")
        else:
            words.append(f"{name} {_tidy(f'{value:.4g}')}")
    if "tokens_per_second" in values:
        words.append(f"{format_count(values['tokens_per_second'])} tok/s")
    words += [f"{name} {values[name]:.1%}" for name in _SPEED[1:] if name in values]
    return " ".join(words)


def format_count(number: float) -> str:
    """Three digits and a letter: 412k, 1.25M."""
    if not math.isfinite(number):
        return str(number)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def format_seconds(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _tidy(text: str) -> str:
    """9.8e-04 -> 9.8e-4, 1.0e-03 -> 1e-3."""
    mantissa, e, exponent = text.partition("e")
    if not e or not exponent.lstrip("+-").isdigit():
        return text
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"
