"""The examples of tasks as sources: `Source("task:SUITE/NAME")`, or "task:SUITE/NAME@FOLDER" with
the publisher's files in FOLDER, under `packing="examples"`.

An epoch of a task is its examples, encoded once by the objective, in an order drawn anew; a row is
found by its number, so that all of `flaxlm.data.batches` holds for examples as it does for text.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flaxlm.data.encoded import ExampleRows
from flaxlm.data.order import mixed, permute
from flaxlm.data.pack import Counts
from flaxlm.data.spec import Data, Source
from flaxlm.errors import ConfigError, DataError
from flaxlm.tasks.base import Example, Form, Task, find

PACKING = "examples"
_HELD_OUT_SEED = 0x5EED
# What an example is to be answered with, by the names that the forms use.
_ANSWERS = ("label", "tags", "answers", "heads", "state")


def is_task(source: Source) -> bool:
    return source.uri.startswith("task:")


def task_of(source: Source) -> tuple[Task, str]:
    """(task, folder with its files or "") that a source names.

    Raises:
      ConfigError: it names none.
    """
    name, _, folder = source.uri.removeprefix("task:").partition("@")
    if not is_task(source):
        raise ConfigError(
            f"{source.uri}: data.packing={PACKING} takes tasks, as in task:glue/sst2 or "
            "task:glue/sst2@FOLDER"
        )
    return find(name), os.path.expanduser(folder)


def check_tasks(objective, data: Data) -> set[str]:
    """Check before any data is read that an objective can learn the tasks that `data` names.

    Returns:
      The names of the main metrics of the tasks that are held out.

    Raises:
      ConfigError: it cannot, or a source is no task.
    """
    if data.packing != PACKING:
        return set()
    every = [*data.sources, *data.held_out]
    for source in every:
        task, _ = task_of(source)
        objective.check(task.form, name=task.name)
    measured = [task_of(source)[0] for source in data.held_out or data.sources]
    return {measure_name(task, task.main, alone=len(measured) == 1) for task in measured}


def measure_name(task: Task, metric: str, *, alone: bool) -> str:
    """What a metric is called in metrics.jsonl: with several tasks, the task's name is part."""
    return metric if alone else f"{task.name}:{metric}"


@dataclass(frozen=True)
class TaskExamples:
    """A set of examples, where others have a corpus (`flaxlm.data.pieces.Documents`).

    Attributes:
      task: whose they are.
      examples: in the publisher's order.
    """

    task: Task
    examples: Sequence[Example]

    @property
    def fingerprint(self) -> str:
        """Changes with any example."""
        text = json.dumps([self.task.name, list(self.examples)], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def open_examples(data: Data) -> tuple[list, list]:
    """Read the examples of all sources.

    Without data.held_out, `held_out_share` of the examples of each source is kept out of training:
    which, does not depend on the run's seed.

    Returns:
      ([(TaskExamples, weight)] for training, the same held out).

    Raises:
      ConfigError, MissingInput, DataError: see `flaxlm.tasks.base.Task.read`; or a training split
        has no labels.
    """
    train = [(_read(source), source.weight) for source in data.sources]
    if data.held_out:
        held_out = [(_read(source), source.weight) for source in data.held_out]
    else:
        held_out = [(_part(some, data.held_out_share, True), w) for some, w in train]
        train = [(_part(some, data.held_out_share, False), w) for some, w in train]
    for some, _ in train:
        if not has_answers(some.examples):
            raise DataError(f"task:{some.task.name}: the examples to train on have no labels")
    return train, [(some, weight) for some, weight in held_out if some.examples]


def has_answers(examples: Sequence[Example]) -> bool:
    """Whether the examples say what is to be answered; a publisher keeps that of some splits."""

    def answered(example):
        found = [example[name] for name in _ANSWERS if name in example]
        return all(x is not None and x != [] for x in found) or example.get("impossible") is True

    return any(answered(example) for example in examples)


def texts(source: Source) -> Iterator[str]:
    """The texts of the examples of a source, to train a vocabulary on."""
    for example in _read(source).examples:
        for name in ("text", "pair", "question", "context"):
            if isinstance(text := example.get(name), str) and text:
                yield text
        if "words" in example:
            yield " ".join(example["words"])
        yield from filter(None, example.get("endings") or ())


def _read(source: Source) -> TaskExamples:
    task, folder = task_of(source)
    return TaskExamples(task, task.read(source.split, folder))


def _part(some: TaskExamples, share: float, held_out: bool) -> TaskExamples:
    count = len(some.examples)
    order = permute(np.arange(count), count, mixed(_HELD_OUT_SEED))
    kept = np.sort(order[: round(share * count)] if held_out else order[round(share * count) :])
    return replace(some, examples=[some.examples[at] for at in kept.tolist()])


class ExampleWindows:
    """Random access to the rows of a set of examples, as `flaxlm.data.pack.Windows`.

    Attributes:
      width: positions of a row.
      counts: what became of the examples.
      encoded: their rows.
    """

    def __init__(self, some: TaskExamples, objective, vocab, *, length: int, name: str):
        """
        Args:
          objective: `flaxlm.objectives.examples.ExampleObjective`, which encodes.
          length: `Data.length`.
          name: of the source, for errors.

        Raises:
          ConfigError: the task is of a form that the objective does not learn, or texts of that
            length have no room.
          DataError: there is no example.
        """
        if not some.examples:
            raise DataError(f"{name} has no examples")
        objective.check(some.task.form, name=some.task.name)
        self._objective, self._some = objective, some
        self.encoded = objective.encode(some.examples, some.task.form, vocab, length)
        self.width = self.encoded.tokens.shape[1]
        tokens, rows = int(self.encoded.lengths.sum()), len(self.encoded)
        per_example = np.bincount(self.encoded.example, minlength=len(some.examples))
        self.counts = Counts(
            documents=len(some.examples), empty=int((per_example == 0).sum()),
            split=int((per_example > 1).sum()), tokens=tokens, dropped=0, pieces=rows, rows=rows,
            full=tokens / max(rows * self.width, 1),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.encoded)

    def rows(
        self, place: np.ndarray, shift: np.ndarray, *, index: np.ndarray, pad: int
    ) -> ExampleRows:
        """Rows by their place in the set, -1 for a row of padding; there is nothing to shift."""
        return ExampleRows(self.encoded, place, index=index, pad=pad)

    @property
    def task(self) -> Task:
        return self._some.task

    @property
    def examples(self) -> Sequence[Example]:
        return self._some.examples

    @property
    def form(self) -> Form:
        return self._some.task.form

    def predictions(self, answers: Mapping[str, np.ndarray]) -> list:
        """The task's answers, one per example.

        Args:
          answers: what `objective.answers` made of every row, in the order of the rows.
        """
        return self._objective.predictions(answers, self.encoded, self.examples, self.form)
