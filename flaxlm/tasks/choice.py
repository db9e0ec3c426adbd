"""Choosing an ending: SWAG (Zellers et al., 2018) and CommonsenseQA (Talmor et al., 2019).

CommonsenseQA comes with five choices, and in its first version with three; both are read, each as
a task of its own, as a head for one is not one for the other. Result files: for SWAG the
publisher's own CSV with "pred" (and a column for each ending's probability where answers are
probabilities); for CommonsenseQA a CSV of id and letter.
"""

from pathlib import Path

import numpy as np

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Choices, Example, Task
from flaxlm.tasks.measures import ACCURACY, indices, write_commas

_ENDINGS = tuple(f"ending{i}" for i in range(4))


def _swag(path: Path, split: str) -> list[Example]:
    examples = []
    for at, (place, row) in enumerate(files.commas(path)):
        label = row["label"] if "label" in row else None
        examples.append(
            {
                "id": str(at),
                "text": files.field(row, "startphrase", place),
                "endings": [files.field(row, name, place) for name in _ENDINGS],
                "label": None if label is None else files.class_index("0123", label, place),
            }
        )
    return examples


def _write_swag(answers, examples, path) -> None:
    scored = len(answers) > 0 and np.ndim(answers[0]) > 0
    columns = ["pred", *(_ENDINGS if scored else ())]

    def row(answer, example):
        return [*indices([answer]), *(f"{p:.6f}" for p in (answer if scored else ()))]

    write_commas(columns, row)(answers, examples, path)


def _commonsense(count: int):
    def parse(path: Path, split: str) -> list[Example]:
        return [_asked(row, count, place) for place, row in files.json_lines(path)]

    return parse


def _asked(row, count: int, place: str) -> Example:
    question = files.field(row, "question", place, dict)
    choices = files.field(question, "choices", place, list)
    if len(choices) != count:
        raise DataError(f"{place}: {len(choices)} choices, expected {count}")
    letters = [files.field(choice, "label", place) for choice in choices]
    key = files.field(row, "answerKey", place) if "answerKey" in row else ""
    return {
        "id": files.field(row, "id", place),
        "text": files.field(question, "stem", place),
        "endings": [files.field(choice, "text", place) for choice in choices],
        "label": files.class_index(letters, key, place) if key else None,
    }


def _task(key: str, count: int, names, parse, write) -> Task:
    read = files.reader(f"choice/{key}", files=names, parse=parse)
    return Task(f"choice/{key}", Choices(count), read, ACCURACY, "accuracy", write)


_COMMONSENSE = {
    "train": ("train_rand_split.jsonl", "train*.jsonl"),
    "validation": ("dev_rand_split.jsonl", "dev*.jsonl"),
    "test": ("test_rand_split_no_answers.jsonl", "test*.jsonl"),
}
_WRITE = write_commas(("id", "answer"), lambda a, e: (e["id"], "ABCDE"[indices([a])[0]]))

TASKS = {
    "swag": _task("swag", 4, {"train": ("train.csv",), "validation": ("val.csv", "swag.csv"),
                  "test": ("test.csv",)}, _swag, _write_swag),
    "commonsenseqa": _task("commonsenseqa", 5, _COMMONSENSE, _commonsense(5), _WRITE),
    "commonsenseqa3": _task("commonsenseqa3", 3, _COMMONSENSE, _commonsense(3), _WRITE),
}  # fmt: skip
