"""When steps are no good: the ladder from leaving one out, over going back, to giving up.

    left out     the step itself did that (`flaxlm.guard`); here it is reported
    gone back    after some in a row: on from the newest checkpoint from before the first of them,
                 with the batches behind the last; what lies between is never read again
    given up     after some of that: exit code 70

Where a run has gone back stands in divergence.json of its directory. So which batch a step gets is
a function of the step and of that file, and a run that is killed and resumed reads what a straight
one does.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxlm.data.files import write_whole
from flaxlm.diagnostics import FOLDER
from flaxlm.errors import NonFinite, StorageError
from flaxlm.guard import Divergence, all_finite
from flaxlm.named import path_name
from flaxlm.processes import from_first

FILE = "divergence.json"
FORMAT = 1


@dataclass(frozen=True)
class Retreat:
    """One time that a run went back.

    Attributes:
      step: the bad step at which it did.
      after: the checkpoint that it went back to, 0 for the beginning.
      batch: number of the batch of the step after that one, counted from 0.
    """

    step: int
    after: int
    batch: int


class Course:
    """Which batch a step gets: a view of `Batches` that leaves out what a run has turned from.

    Args:
      batches: by their own numbers.
      retreats: in the order of time.
    """

    def __init__(self, batches, retreats: tuple[Retreat, ...] = ()):
        self._batches, self.retreats = batches, retreats

    def number(self, step: int) -> int:
        """Number of the batch of `step`, both counted from 0."""
        for retreat in reversed(self.retreats):  # a later one is right about all behind its point
            if retreat.after <= step:
                return retreat.batch + step - retreat.after
        return step

    def __getitem__(self, step: int):
        return self._batches[self.number(step)]

    def lands(self, step: int) -> bool:
        """Whether the batch of `step` does not follow that of the step before."""
        return step > 0 and self.number(step) != self.number(step - 1) + 1

    def begins(self, step: int) -> bool:
        """Whether a phase has begun since the batch of the step before."""
        before = self.number(step - 1) if step else -1
        return any(map(self._batches.begins, range(before + 1, self.number(step) + 1)))

    def used(self, steps: int) -> list[float]:
        """See `Batches`; with the batches that were left out."""
        return self._batches.used(self.number(steps - 1) + 1)

    def place_of(self, step: int) -> np.ndarray:
        """See `Batches`."""
        return self._batches.place_of(self.number(step))

    def rows_of(self, step: int) -> np.ndarray:
        """See `Batches`."""
        return self._batches.rows_of(self.number(step))

    def origins(self, step: int) -> list[tuple[str, list[int]]]:
        """See `Batches`."""
        return self._batches.origins(self.number(step))

    def turned(self, *, at: int, first: int, steps: list[int]) -> "Course":
        """The course of a run that goes back.

        Args:
          at: the bad step (counted from 1) at which it does.
          first: the first bad step.
          steps: of its checkpoints.
        """
        good = [step for step in steps if step < first] or [0]
        after = max(good)
        if self.retreats and self.retreats[-1].after == after:
            # It led nowhere: perhaps that checkpoint was bad already.
            after = max((step for step in good if step < after), default=after)
        retreat = Retreat(step=at, after=after, batch=self.number(at - 1) + 1)
        return Course(self._batches, (*self.retreats, retreat))

    @property
    def facts(self) -> dict[str, int]:
        """The last retreat as a metric line."""
        last = self.retreats[-1]
        return {"from": last.step, "batch": last.batch, "retreats": len(self.retreats)}

    @property
    def summary(self) -> str:
        """The last retreat in one line."""
        last = self.retreats[-1]
        begin = Course(self._batches, self.retreats[:-1]).number(last.after)
        return (
            f"step {last.step}: back to step {last.after}; batches {begin} to {last.batch - 1} are "
            f"left out from now on (retreat {len(self.retreats)})"
        )

    def write(self, directory: Path) -> None:
        """Keep it in divergence.json.

        Raises:
          StorageError: it cannot be written.
        """
        found = {"format": FORMAT, "retreats": [asdict(retreat) for retreat in self.retreats]}
        write_whole(directory / FILE, (json.dumps(found, indent=1) + "\n").encode())


def read_retreats(directory: Path) -> list[dict]:
    """What divergence.json of a run says, [] if there is none.

    Raises:
      StorageError: it is damaged.
    """
    path = directory / FILE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes())
        assert found["format"] == FORMAT
        return [asdict(Retreat(**retreat)) for retreat in found["retreats"]]
    except (ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise StorageError(
            f"{path} is damaged ({error}): without it the run does not know which batches it has "
            "left out; put back a copy, or choose another --run.directory"
        ) from None


class Watch:
    """Looks at the verdict of every step, two steps late, so that no device waits for it.

    A step that was left out or stands out gets a line of kind "skipped" or "spike" in
    metrics.jsonl, a line for people, and a file.

    Args:
      policy: what is done.
      writer: of the metrics.
      diagnostics: (event, step, metrics, state) -> name of the file; collective.

    Attributes:
      streak: bad steps in a row, up to the last one looked at.
      last: the numbers of the last step that was reported, for people.
    """

    def __init__(self, policy: Divergence, *, writer, diagnostics: Callable[..., str]):
        self._policy, self._writer, self._diagnostics = policy, writer, diagnostics
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()
        self.streak, self.last = 0, ""

    def later(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remember a step (counted from 1) that was dispatched."""
        metrics["evidence"]["verdict"].copy_to_host_async()
        self._waiting.append((step, metrics))

    def look(self, state, *, behind: int = 2) -> int:
        """Look at all steps but the last `behind`; blocks until they are done.

        Returns:
          The step at which the run has to go back, 0 if it may go on.
        """
        while len(self._waiting) > behind:
            step, metrics = self._waiting.popleft()
            streak, good, *deviations = np.asarray(metrics["evidence"]["verdict"]).tolist()
            self.streak = int(streak)
            stands_out = 0 < self._policy.spike < max(deviations)
            if not good or stands_out:
                self._report("spike" if good else "skipped", step, metrics, state, deviations)
            if self.streak >= self._policy.skips:
                return step
        return 0

    def _report(self, event: str, step: int, metrics, state, deviations: list[float]) -> None:
        file = self._diagnostics(event, step, metrics, state)
        values = {name: float(metrics[name]) for name in ("loss", "grad_norm", "skipped")}
        loss, norm = deviations
        self._writer.record(
            step, {**values, "loss_deviation": loss, "grad_norm_deviation": norm}, kind=event
        )
        what = "stands out" if event == "spike" else f"left out, {self.streak} in a row"
        self.last = f"loss {values['loss']:.4g}, grad_norm {values['grad_norm']:.4g}"
        if max(loss, norm) > 0:
            self.last += f" ({loss:+.1f} and {norm:+.1f} deviations)"
        self._writer.say(f"step {step}: {what}: {self.last}; {file}")


@jax.jit
def _finite(tree):
    return jax.tree.map(all_finite, tree)


def not_finite(state) -> list[str]:
    """Names of the arrays of a state (what is trained, not what is frozen) with a NaN or an
    infinity. Collective.
    """
    flags = _finite({"params": state.params, "opt": state.opt, "carry": state.carry})
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(flags))
    return [path_name(path) for path, flag in leaves if not flag]


def go_back(end, course: Course, checkpoints, directory: Path, policy: Divergence) -> Course:
    """Decide where a run goes on after the bad `end` of its loop, and write it down. Collective.

    Checkpoints from behind that point are removed: they belong to the course that is left.

    Returns:
      The course to go on with.

    Raises:
      NonFinite: it has gone back as often as it may.
    """
    good = checkpoints.before(end.first)
    if (times := len(course.retreats)) >= policy.rollbacks:
        raise NonFinite(
            f"step {end.bad}: {end.why}. The run has gone back {times} time(s) and stops; "
            f"{f'checkpoint {good[-1]} is from before' if good else 'it has no checkpoint'}; "
            f"{directory / FOLDER} has the rows. A lower learning rate, a longer warmup or "
            "optimizer.clip=1.0 are the usual remedies; "
            f"--run.divergence.rollbacks={times + 1} leaves out these batches as well"
        )
    course = course.turned(at=end.bad, first=end.first, steps=good)
    # In this order: killed in between, the next start comes to the same end again.
    checkpoints.discard(after=course.retreats[-1].after)
    from_first(lambda: course.write(directory))
    return course
