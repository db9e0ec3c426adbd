"""What a task is: examples of one form, a metric, an official file of answers.

A suite of tasks is one module of this folder with `TASKS`, key -> `Task`; "glue/sst2" is the task
`sst2` of `glue.py`. A form says what an example holds and what an answer is, so that one head and
one loss serve every task of that form. Examples are plain dicts, answers plain values:

| form | example, besides "id" | answer |
|---|---|---|
| `Classes` | text, pair (or None), label: int or None | class index, or probabilities |
| `Score` | text, pair (or None), label: float or None | float |
| `Tags` | words, tags: list of indices or None | list of indices, one per word |
| `Spans` | question, context, answers: [{text, start}], impossible | {text, no_answer} |
| `Choices` | text, endings, label: int or None | index of an ending, or probabilities |
| `Arcs` | words, pos, heads, relations (or None, None) | (heads, relations) |
| `States` | text, state: {slot: value} or None | {slot: value} |

Probabilities are a row with one for each class or ending; the largest is the answer.
A label of None is one that the publisher keeps: such a split can be answered, not measured.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flaxlm.tasks
from flaxlm.errors import ConfigError, DataError, nearest

Example = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """One of `labels` for a text, or for a pair of texts."""

    labels: tuple[str, ...]
    pair: bool = False


@dataclass(frozen=True)
class Score:
    """A number from `low` to `high` for a text, or for a pair of texts."""

    low: float
    high: float
    pair: bool = False


@dataclass(frozen=True)
class Tags:
    """One of `labels` for each word. `joined`: the "words" are characters, of which an example's
    text is made without spaces in between.
    """

    labels: tuple[str, ...]
    joined: bool = False


@dataclass(frozen=True)
class Spans:
    """A piece of the context. `answers` is empty where none is known, or, with `no_answer`, where
    the question is `impossible`; "start" counts characters. An answer's "no_answer" is a number,
    the higher the surer that there is none; it is 0.0 where that was not asked.
    """

    no_answer: bool = False


@dataclass(frozen=True)
class Choices:
    """One of `count` endings of a text."""

    count: int


@dataclass(frozen=True)
class Arcs:
    """For each word its head (0: the root, else the head's place counted from 1) and one of
    `labels`, the relation to it. "pos" are `tags` joined by "+", one for each morpheme of a word.
    """

    labels: tuple[str, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class States:
    """A value for each of `slots` of which the dialogue `text` has said one, others left out."""

    slots: tuple[str, ...]


Form = Classes | Score | Tags | Spans | Choices | Arcs | States


@dataclass(frozen=True)
class Task:
    """A data set with its metric.

    Attributes:
      name: "glue/sst2".
      form: what an example holds and what an answer is.
      reader: `(split, folder) -> examples` of a whole split, `folder` "" for TFDS.
      metrics: `(answers, examples) -> {name: value}`, the answers in the order of the examples,
        the values in percent (100 is best), thresholds aside. Raises DataError where examples
        lack their labels.
      main: the metric that chooses the best of several models; more is better.
      write: `(answers, examples, path)` writes the file that the publisher's own script or server
        reads; `path` is the file.
    """

    name: str
    form: Form
    reader: Callable[[str, str], list[Example]]
    metrics: Callable[[Sequence[Any], Sequence[Example]], Mapping[str, float]]
    main: str
    write: Callable[[Sequence[Any], Sequence[Example], str], None]

    def read(self, split: str, folder: str = "") -> list[Example]:
        """The examples of a split.

        Args:
          split: "train", "validation" or "test", or a slice of one: "train[:90%]",
            "train[1000:]". Two slices that meet at a boundary share nothing and miss nothing.
          folder: with the publisher's files; "": a TFDS data set that was prepared here.

        Raises:
          ConfigError: no such split, or not a slice.
          MissingInput: no such file, or no such TFDS data set here.
          DataError: a file that is not as its publisher made it, with its place.
        """
        whole, start, stop = _slice(self.name, split)
        examples = self.reader(whole, folder)
        first, last = (round_down(end, len(examples)) for end in (start, stop))
        if not examples[first:last]:
            raise DataError(f"task:{self.name}: {split!r} of {len(examples):,} examples is empty")
        return examples[first:last]


def round_down(end: str, count: int) -> int:
    """A boundary of a slice, "10%" or "-100", as a number of `count` examples."""
    if end.endswith("%"):
        place = int(end[:-1]) * count // 100
    else:
        place = int(end)
    return max(0, min(count, place + count if end.startswith("-") else place))


def _slice(name: str, split: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split, re.ASCII)
    if found is None:
        raise ConfigError(
            f"task:{name}: split {split!r} is no name or slice; write train, train[:90%] "
            "or train[1000:2000]"
        )
    whole, start, stop = found.groups()
    return whole, start or "0%", stop or "100%"


@functools.cache
def names() -> tuple[str, ...]:
    """Names of all tasks, sorted."""
    found = []
    for module in pkgutil.iter_modules(flaxlm.tasks.__path__):
        suite = importlib.import_module(f"flaxlm.tasks.{module.name}")
        found += [f"{module.name}/{key}" for key in getattr(suite, "TASKS", ())]
    return tuple(sorted(found))


def find(name: str) -> Task:
    """The task of a name.

    Raises:
      ConfigError: there is none, with the nearest names.
    """
    if name not in names():
        raise ConfigError(f"task:{name}: no task has that name; {nearest(name, names())}")
    suite, key = name.split("/")
    return importlib.import_module(f"flaxlm.tasks.{suite}").TASKS[key]
