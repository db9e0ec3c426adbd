"""Which checkpoints of a run stay on disk: the newest, one for every so many hours, the best."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flaxlm.errors import ConfigError, nearest

_SIGNS = {"min": 1.0, "max": -1.0}


@dataclass(frozen=True)
class Saved:
    """A checkpoint, as far as its being kept is concerned.

    Attributes:
      time: when it was saved, seconds since 1970.
      metrics: of the evaluation of that very step; {} if it had none.
    """

    step: int
    time: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """What is kept; a checkpoint goes when nothing here wants it.

    What is kept once as the first of its hours or as the best so far is wanted at every later save
    too, so that no history is needed beside what is on disk.

    Attributes:
      newest: so many of the newest, at least 1.
      hours: and the first of every window of so many hours; 0 is none of these.
      best: and the one with the best value of a held-out metric, "min loss" or "max gain"; "" is
        none.

    Raises:
      ConfigError: on construction, naming the field of `run`.
    """

    newest: int
    hours: float = 0.0
    best: str = ""

    def __post_init__(self):
        if self.newest < 1:
            raise ConfigError(f"run.keep={self.newest}: at least 1 checkpoint must be kept")
        if not 0 <= self.hours < math.inf:
            raise ConfigError(f"run.keep_hours={self.hours}: 0 or a number of hours")
        words = self.best.split()
        if self.best and (len(words) != 2 or words[0] not in _SIGNS):
            raise ConfigError(
                f"run.keep_best={self.best!r}: 'min' or 'max' and a held-out metric, as 'min loss'"
            )

    def check(self, run, terms: set[str]) -> None:
        """Check that `best` will have something to choose from.

        Args:
          run: its `eval_every` and `save_every`.
          terms: of the objective, which an evaluation reports beside "loss" and "gain".

        Raises:
          ConfigError: it has not.
        """
        if not self.best:
            return
        metric, known = self.best.split()[1], {"loss", "gain"} | terms
        if metric not in known:
            raise ConfigError(
                f"run.keep_best={self.best!r}: the evaluation has no {metric!r}; "
                f"{nearest(metric, known)}"
            )
        evaluated, saved = run.eval_every, run.save_every
        if not (evaluated and saved and max(evaluated, saved) % min(evaluated, saved) == 0):
            raise ConfigError(
                f"run.keep_best={self.best!r} chooses among steps that are evaluated and saved: "
                f"run.eval_every={evaluated} and run.save_every={saved} must be multiples of one "
                "another"
            )

    def best_first(self, saved: Iterable[Saved]) -> list[int]:
        """Steps, the best in front and behind it the others, newest first."""
        newest = sorted(saved, key=lambda one: -one.step)
        best = replace(self, newest=1, hours=0.0).kept(newest) if newest else set()
        chosen = best - {newest[0].step} if len(best) > 1 else best
        return sorted((one.step for one in newest), key=lambda step: (step not in chosen, -step))

    def kept(self, saved: Iterable[Saved]) -> set[int]:
        """The steps that stay."""
        saved = sorted(saved, key=lambda one: one.step)
        stay = {one.step for one in saved[-self.newest :]}
        if self.hours:
            windows: dict[int, int] = {}
            for one in saved:
                windows.setdefault(int(one.time // (self.hours * 3600)), one.step)
            stay |= {*windows.values()}
        if self.best:
            order, metric = self.best.split()
            values = {
                one.step: _SIGNS[order] * one.metrics[metric]
                for one in saved
                if metric in one.metrics and math.isfinite(one.metrics[metric])
            }
            if values:
                stay.add(min(values, key=values.__getitem__))
        return stay
