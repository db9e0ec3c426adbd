"""Inference over pairs of sentences: SNLI (Bowman et al., 2015), MedNLI (Romanov and Shivade,
2018) and MED (Yanaka et al., 2019).

SNLI and MedNLI have the same JSON lines. A pair whose annotators did not agree has the label "-"
there; it is left out, and how many were is said. MED is one file without splits: take slices.
"""

from pathlib import Path
from typing import Any

from flaxlm.tasks import files
from flaxlm.tasks.base import Classes, Example, Task
from flaxlm.tasks.measures import ACCURACY, write_labels

_LABELS = ("entailment", "neutral", "contradiction")
_UNDECIDED = "-"


def _json_lines(path: Path, split: str) -> list[Example]:
    examples, undecided = [], 0
    for place, row in files.json_lines(path):
        label = row["gold_label"] if "gold_label" in row else None
        if label == _UNDECIDED:
            undecided += 1
            continue
        examples.append(
            {
                "id": files.field(row, "pairID", place),
                "text": files.field(row, "sentence1", place),
                "pair": files.field(row, "sentence2", place),
                "label": None if label is None else files.class_index(_LABELS, label, place),
            }
        )
    files.said(path, undecided, "pairs without an agreed label")
    return examples


def _med(path: Path, split: str) -> list[Example]:
    labels = _LABELS[:2]
    examples = []
    for place, row in files.table(path):
        text, pair, label = (
            files.field(row, name, place) for name in ("sentence1", "sentence2", "gold_label")
        )
        number = files.class_index(labels, label, place)
        examples.append(
            {"id": files.field(row, "index", place), "text": text, "pair": pair, "label": number}
        )
    return examples


def _convert(record: dict[str, Any], place: str) -> Example:
    label = record["label"] if record["label"] >= 0 else None
    return {"id": place, "text": record["premise"], "pair": record["hypothesis"], "label": label}


def _decided(read):
    """A reader that leaves out what TFDS has without a label."""

    def reader(split: str, folder: str) -> list[Example]:
        examples = read(split, folder)
        left = [example for example in examples if example["label"] is not None]
        files.said(f"tfds:snli:{split}", len(examples) - len(left), "pairs without an agreed label")
        return left

    return reader


def _task(key: str, labels, stem: str, splits, parse, tfds: str = "") -> Task:
    names = {split: (stem.format(theirs),) for split, theirs in splits.items()}
    convert = _convert if tfds else None
    read = files.reader(f"nli/{key}", files=names, parse=parse, tfds=tfds, convert=convert)
    read = _decided(read) if tfds else read
    form = Classes(labels, pair=True)
    return Task(f"nli/{key}", form, read, ACCURACY, "accuracy", write_labels(labels))


_SPLITS = {"train": "train", "validation": "dev", "test": "test"}

TASKS = {
    "snli": _task("snli", _LABELS, "snli_1.0_{}.jsonl", _SPLITS, _json_lines, tfds="snli"),
    "mednli": _task("mednli", _LABELS, "mli_{}_v1.jsonl", _SPLITS, _json_lines),
    "med": _task("med", _LABELS[:2], "MED.tsv", {"train": ""}, _med),
}
