"""What a task scores without reading a word: the answer that is right most often in training.

For spans, where no answer is common: no answer where the task knows such, else the first word of
the context. For arcs, each word hangs on the next with the commonest relation, the last on none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flaxlm.errors import DataError
from flaxlm.tasks.base import (
    Arcs,
    Choices,
    Classes,
    Example,
    Score,
    Spans,
    States,
    Tags,
    Task,
)
from flaxlm.tasks.measures import known

Answer = Callable[[Example], Any]


def majority(task: Task, train: Sequence[Example], examples: Sequence[Example]) -> list[Any]:
    """Answers to `examples` by what is commonest in `train`; `task.metrics` says what they score.

    Raises:
      DataError: the training examples have no labels.
    """
    answer = _LEARN[type(task.form)](task.form, train)
    return [answer(example) for example in examples]


def _commonest(values: Iterable[Any]) -> Any:
    """The commonest value (of a Counter: key), the smallest of several."""
    counted = Counter(values)
    if not counted:
        raise DataError("there are no labels to find the commonest of")
    return min(counted.items(), key=lambda item: (-item[1], item[0]))[0]


def _constant(value: Any) -> Answer:
    return lambda example: value


def _class(form: Classes | Choices, train: Sequence[Example]) -> Answer:
    return _constant(_commonest(known(train, "label")))


def _score(form: Score, train: Sequence[Example]) -> Answer:
    return _constant(float(np.mean(known(train, "label"))))


def _tag(form: Tags, train: Sequence[Example]) -> Answer:
    """The commonest tag of each word, of a word never seen the commonest of all."""
    seen: dict[str, Counter] = {}
    for example, tags in zip(train, known(train, "tags"), strict=True):
        for word, tag in zip(example["words"], tags, strict=True):
            seen.setdefault(word, Counter())[tag] += 1
    best = {word: _commonest(counter) for word, counter in seen.items()}
    usual = _commonest([tag for tags in known(train, "tags") for tag in tags])
    return lambda example: [best[w] if w in best else usual for w in example["words"]]


def _span(form: Spans, train: Sequence[Example]) -> Answer:
    if form.no_answer:
        return _constant({"text": "", "no_answer": 1.0})
    return lambda example: {"text": " ".join(example["context"].split()[:1]), "no_answer": 0.0}


def _arcs(form: Arcs, train: Sequence[Example]) -> Answer:
    usual = _commonest([relation for some in known(train, "relations") for relation in some])

    def answer(example):
        count = len(example["words"])
        return [*range(2, count + 1), 0], [usual] * count

    return answer


def _state(form: States, train: Sequence[Example]) -> Answer:
    """The slots that are set more often than not, with their commonest value."""
    states = known(train, "state")
    values = {slot: [s[slot] for s in states if slot in s] for slot in form.slots}
    usual = {s: _commonest(some) for s, some in values.items() if 2 * len(some) > len(states)}
    return lambda example: dict(usual)


_LEARN = {
    Classes: _class,
    Choices: _class,
    Score: _score,
    Tags: _tag,
    Spans: _span,
    Arcs: _arcs,
    States: _state,
}
