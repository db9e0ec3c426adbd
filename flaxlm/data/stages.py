"""The phases of a run, each with the windows of its length and the count of all that was before."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flaxlm.data.examples import PACKING, ExampleWindows
from flaxlm.data.order import Epochs, mixed
from flaxlm.data.pack import Windows
from flaxlm.data.spec import Data, Phase
from flaxlm.errors import DataError

# Which rows of a global batch a host makes: of every batch alike, or as a function of its size.
Share = slice | np.ndarray | Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Stage:
    """A phase of the run and all that is behind it when it begins.

    Attributes:
      phase: see `flaxlm.data.spec.Phase`.
      windows: per component, of its length.
      epochs: the same.
      place: rows of the batch that this host makes.
      rows: global number of its first row.
      samples: rows of this length that were made before.
      passed: tokens that each row of "continue" has passed.
    """

    phase: Phase
    windows: list[Windows] | list[ExampleWindows]
    epochs: list[Epochs]
    place: np.ndarray
    rows: int
    samples: int
    passed: int


def stages_of(
    components, names, objective, vocab, data: Data, seed: int, rows: Share
) -> list[Stage]:
    """The phases of a run, each with what was before it; arguments as those of `Batches`."""
    windows: dict[int, list[Windows] | list[ExampleWindows]] = {}
    epochs: dict[int, list[Epochs]] = {}
    samples: dict[int, int] = {}
    stages: list[Stage] = []
    for phase in data.course:
        length = phase.length
        if length not in windows:
            made = windows_of(components, names, objective, vocab, data.packing, length)
            # Without phases the seeds are those of the components alone.
            turn = [len(windows)] if windows else []
            seeds = [int(mixed(seed, 4, c, *turn)[0]) for c in range(len(made))]
            windows[length], samples[length] = made, 0
            epochs[length] = [Epochs(len(w), s) for w, s in zip(made, seeds, strict=True)]
        first = passed = 0
        if stages:
            last = stages[-1]
            steps = phase.start - last.phase.start
            assert steps > 0, f"phases out of order: {data.course}"
            first = last.rows + steps * last.phase.batch
            passed = last.passed + steps * objective.advance(last.phase.length)
            samples[last.phase.length] += steps * last.phase.batch
        place = share_of(rows, phase.batch)
        stages.append(
            Stage(phase, windows[length], epochs[length], place, first, samples[length], passed)
        )
    return stages


def share_of(rows: Share, batch: int) -> np.ndarray:
    """[n] the rows of a global batch of `batch` rows that a host makes."""
    return rows(batch) if callable(rows) else np.arange(batch)[rows]


def windows_of(
    components, names, objective, vocab, packing: str, length: int
) -> list[Windows] | list[ExampleWindows]:
    """The windows of each component in rows of one length.

    Raises:
      DataError: a component makes no row, or one alone where the objective pairs rows.
    """
    assert len(components) == len(names) > 0, f"{len(components)} corpora for {len(names)} sources"
    if packing == PACKING:
        return [
            ExampleWindows(some, objective, vocab, length=length, name=name)
            for (some, _), name in zip(components, names, strict=True)
        ]
    width, separator = objective.window(length), objective.separator(vocab)
    found = [
        Windows(corpus, width=width, packing=packing, separator=separator, name=name)
        for (corpus, _), name in zip(components, names, strict=True)
    ]
    for windows, name in zip(found, names, strict=True):
        if objective.partners and len(windows) < 2:
            raise DataError(
                f"{name}: {windows.counts.tokens} tokens make one row of {width} tokens, and "
                f"{type(objective).__name__} pairs rows: add text, or lower data.length"
            )
    return found
