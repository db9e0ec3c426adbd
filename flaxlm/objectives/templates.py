"""An example of a task as two texts, what is asked and what is to be said, and back.

    "rte sentence1: {text} sentence2: {pair}"      ->  "{answer}"
    rte sentence1: A man eats. sentence2: He eats.  ->  entailment

A template is text with names of fields in braces; "{{" is a brace. Which fields an example has
depends on the form of its task (`flaxlm.tasks.base`):

| form | fields |
|---|---|
| Classes | text, pair, names: of the classes, "negative or positive" |
| Score | text, pair, low, high |
| Choices | text, choice1, choice2, ..., names: of the endings, options: "A. door", a line each |
| Spans | question, context |

A target has "answer" besides: the name of the class, the number rounded to 0.2 (Raffel et al. 2020,
section 2.4), the ending, the piece of the context or "unanswerable".
"""

import functools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxlm.errors import ConfigError

FORMS = ("Classes", "Score", "Choices", "Spans")
NO_ANSWER = "unanswerable"
_STEPS = 5  # of a number, per unit


@dataclass(frozen=True)
class Asked:
    """An example as texts.

    Attributes:
      input: what is asked.
      target: what is to be said; None where the example has no label.
      candidates: what can be said, one per class or ending; () where that is not a choice.
    """

    input: str
    target: str | None
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """See the module.

    Attributes:
      input, target: texts with fields.
      choices: names of the classes, or of the endings, in their order; (): the labels themselves,
        or the endings.
      join: what stands between input and target where one stack reads both.
    """

    input: str
    target: str = "{answer}"
    choices: tuple[str, ...] = ()
    join: str = " "

    def __post_init__(self):
        _parsed(self.input), _parsed(self.target)
        if len(set(self.choices)) < len(self.choices):
            raise ConfigError(f"choices={self.choices}: two classes would be called alike")

    def check(self, form, *, name: str) -> None:
        """Check that the template is one for a form.

        Raises:
          ConfigError: it is not; naming the field, or the numbers, and the task `name`.
        """
        kind = type(form).__name__
        if kind not in FORMS:
            raise ConfigError(
                f"task:{name} is of the form {kind}, which has no text to answer with; there are "
                f"templates for {', '.join(FORMS)}"
            )
        count = {"Classes": lambda: len(form.labels), "Choices": lambda: form.count}
        if self.choices and len(self.choices) != (count[kind]() if kind in count else 0):
            raise ConfigError(
                f"the template {self.input!r} has {len(self.choices)} choices; task:{name} "
                f"{f'has {count[kind]()}' if kind in count else 'is no choice'}"
            )
        known = set(_blank_fields(form))
        for text, more in ((self.input, set()), (self.target, {"answer"})):
            for field in {field for _, field in _parsed(text)} - known - more - {""}:
                raise ConfigError(
                    f"the template {text!r} names {{{field}}}; an example of task:{name} has "
                    f"{', '.join(sorted(known | more))}"
                )

    def ask(self, example: Mapping[str, Any], form) -> Asked:
        """The texts of an example; the template was checked with its form."""
        fields = fields_of(example, form, self.choices)
        candidates, target = (), None
        if type(form).__name__ in ("Classes", "Choices"):
            candidates = tuple(
                _filled(self.target, {**fields, "answer": answer})
                for answer in self.choices or names_of(example, form)
            )
            if example["label"] is not None:
                target = candidates[example["label"]]
        else:
            answer = answer_of(example, form)
            if answer is not None:
                target = _filled(self.target, {**fields, "answer": answer})
        return Asked(_filled(self.input, fields), target, candidates)


def read_answer(text: str, asked: Asked, example: Mapping[str, Any], form):
    """The task's answer that a text says.

    A text that is no candidate counts as wrong: the answer is a class or ending that is not the
    right one. A number is brought into its range; what is no number is the lowest one.
    """
    text = " ".join(text.split())
    if asked.candidates:
        names = [" ".join(name.split()) for name in asked.candidates]
        if text in names:
            return names.index(text)
        return 0 if example["label"] is None else (example["label"] + 1) % len(names)
    if type(form).__name__ == "Score":
        try:
            number = float(text)
        except ValueError:
            number = form.low
        return min(max(number, form.low), form.high) if number == number else form.low
    none = form.no_answer and text in ("", NO_ANSWER)
    return {"text": "" if none else text, "no_answer": float(none)}


def names_of(example: Mapping[str, Any], form) -> Sequence[str]:
    """The labels of a form of classes; the endings of an example of choices."""
    return form.labels if type(form).__name__ == "Classes" else example["endings"]


def answer_of(example: Mapping[str, Any], form) -> str | None:
    """A number, or a piece of a context, as it is to be said; None where it is not known."""
    if type(form).__name__ == "Score":
        label = example["label"]
        return None if label is None else f"{round(label * _STEPS) / _STEPS:.1f}"
    if example["impossible"]:
        return NO_ANSWER
    return example["answers"][0]["text"] if example["answers"] else None


def fields_of(example: Mapping[str, Any], form, choices: Sequence[str] = ()) -> dict[str, str]:
    """See the module; `choices` are the names that a template has for classes or endings."""
    kind = type(form).__name__
    if kind == "Spans":
        return {name: example[name] for name in ("question", "context")}
    fields = {"text": example["text"]}
    if kind in ("Classes", "Score") and form.pair:
        fields["pair"] = example["pair"]
    if kind == "Score":
        return {**fields, "low": f"{form.low:g}", "high": f"{form.high:g}"}
    names = names_of(example, form)
    if kind == "Choices":
        lines = [f"{string.ascii_uppercase[at]}. {name}" for at, name in enumerate(names)]
        fields["options"] = "\n".join(lines)
        fields |= {f"choice{at}": name for at, name in enumerate(names, 1)}
    else:
        names = choices or names
    return {**fields, "names": " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))}


def _blank_fields(form) -> dict[str, str]:
    blank = {"text": "", "pair": "", "question": "", "context": "", "label": None}
    return fields_of({**blank, "endings": [""] * getattr(form, "count", 0)}, form)


@functools.cache
def _parsed(text: str) -> tuple[tuple[str, str], ...]:
    """(text, name of the field behind it or "") of each part of a template.

    Raises:
      ConfigError: braces that do not close, or hold more than a name.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"the template {text!r}: {error}") from None
    found = []
    for before, field, spec, conversion in parts:
        if field is not None and (not field.isidentifier() or spec or conversion):
            raise ConfigError(
                f"the template {text!r}: between braces stands the name of a field alone, as in "
                "{text}; write {{ for a brace"
            )
        found.append((before, field or ""))
    return tuple(found)


def _filled(text: str, fields: Mapping[str, str]) -> str:
    return "".join(before + (fields[field] if field else "") for before, field in _parsed(text))
