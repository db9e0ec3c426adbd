"""The fields of an example by the names that they have where data sets are published, which are the
names in promptsource's templates.
"""

import string
from collections.abc import Mapping
from typing import Any

_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"))
# Tasks whose text and pair have names of their own.
_OWN_PAIRS = {
    "glue/qnli": ("question", "sentence"),
    "superglue/boolq": ("question", "passage"),
}


def published(example: Mapping[str, Any], form, *, task: str) -> dict[str, Any]:
    """Names and values for a template; every name that a task of the form may go by.

    Args:
      form: of `flaxlm.tasks.base`: Classes, Score, Choices or Spans.
      task: its name.
    """
    kind = type(form).__name__
    if kind == "Spans":
        known = example["answers"]
        answers = {
            "text": [answer["text"] for answer in known],
            "answer_start": [answer["start"] for answer in known],
        }
        names = ("id", "question", "context")
        return {**{name: example[name] for name in names}, "answers": answers}
    label, text = example["label"], example["text"]
    found: dict[str, Any] = {"text": text, "label": label}
    if kind == "Choices":
        letters = list(string.ascii_uppercase[: form.count])
        found |= {
            "question": text,
            "choices": {"text": list(example["endings"]), "label": letters},
            "answerKey": "" if label is None else letters[label],
        }
        for at, ending in enumerate(example["endings"]):
            found |= {f"ending{at}": ending, f"choice{at + 1}": ending}
        return found
    if form.pair:
        for names in (*_PAIRS, *([_OWN_PAIRS[task]] if task in _OWN_PAIRS else [])):
            found |= dict(zip(names, (text, example["pair"]), strict=True))
        return found
    return {**found, "sentence": text, "content": text, "review": text, "rating": label}
