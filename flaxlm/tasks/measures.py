"""What tasks are made of besides reading: metrics and result files of each form.

`class_metrics(accuracy=accuracy)` and the like turn metrics of plain arrays into those of a task:
answers and examples in, percent out.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxlm.errors import DataError, StorageError
from flaxlm.tasks import metrics, spans, structures
from flaxlm.tasks.base import Example

Metrics = Callable[[Sequence[Any], Sequence[Example]], Mapping[str, float]]
_PARTS = (("HasAns", True), ("NoAns", False))  # as SQuAD 2.0's script calls them


def known(examples: Sequence[Example], key: str) -> list:
    """The labels of the examples.

    Raises:
      DataError: there are none to measure with.
    """
    if not examples:
        raise DataError("there are no examples to measure")
    for example in examples:
        if example[key] is None:
            raise DataError(
                f"example {example['id']!r} has no {key}: its publisher keeps the labels of this "
                "split, so answers can be written to a file but not measured here"
            )
    return [example[key] for example in examples]


def aligned(answers: Sequence[Any], examples: Sequence[Example]) -> None:
    if len(answers) != len(examples):
        raise DataError(f"{len(answers):,} answers for {len(examples):,} examples")


def indices(answers: Sequence[Any]) -> list[int]:
    """Class indices, of answers that are these or the classes' probabilities."""
    return [int(a) if np.ndim(a) == 0 else int(np.argmax(a)) for a in answers]


def class_metrics(**each: Callable[[Sequence[int], Sequence[int]], float]) -> Metrics:
    """Metrics of classes and choices, by name."""

    def measure(answers, examples):
        aligned(answers, examples)
        given, true = indices(answers), known(examples, "label")
        return {name: 100 * metric(given, true) for name, metric in each.items()}

    return measure


def score_metrics(**each: Callable[[Sequence[float], Sequence[float]], float]) -> Metrics:
    """Metrics of scores, by name."""

    def measure(answers, examples):
        aligned(answers, examples)
        given, true = np.asarray(answers, np.float64), known(examples, "label")
        return {name: 100 * metric(given, true) for name, metric in each.items()}

    return measure


CORRELATIONS = score_metrics(pearson=metrics.pearson, spearman=metrics.spearman)
ACCURACY = class_metrics(accuracy=metrics.accuracy)


def tag_metrics(labels: Sequence[str]) -> Metrics:
    """Precision, recall and F1 of entities, as seqeval, and accuracy of tags."""

    def measure(answers, examples):
        aligned(answers, examples)
        given, true = tag_pairs(answers, examples)
        named = [[[labels[t] for t in tags] for tags in some] for some in (given, true)]
        values = structures.entity_scores(*named)
        flat = [[t for tags in some for t in tags] for some in (given, true)]
        values |= {"accuracy": metrics.accuracy(*flat)}
        return {name: 100 * value for name, value in values.items()}

    return measure


def tag_pairs(answers, examples) -> tuple[list[list[int]], list[list[int]]]:
    """Tags given and true, checked to be one per word."""
    true = known(examples, "tags")
    for given, tags, example in zip(answers, true, examples, strict=True):
        if len(given) != len(tags):
            raise DataError(f"example {example['id']!r}: {len(given)} tags for {len(tags)} words")
    return [[int(t) for t in tags] for tags in answers], true


def span_metrics(
    exact: Callable[[str, str], float], overlap: Callable[[str, str], float], names=("exact", "f1")
) -> Metrics:
    """Mean over the questions of an answer's exact match and overlap with the closest answer."""

    def measure(answers, examples):
        aligned(answers, examples)
        true = [answer_texts(example) for example in examples]
        pairs = [(a["text"], texts) for a, texts in zip(answers, true, strict=True)]
        return {
            name: 100 * metrics.mean([spans.best_over(metric, *pair) for pair in pairs])
            for name, metric in zip(names, (exact, overlap), strict=True)
        }

    return measure


def answer_texts(example: Example) -> list[str]:
    """The texts of the answers to a question, [""] if there is none to find.

    Raises:
      DataError: the publisher keeps them.
    """
    if not example["answers"] and not example["impossible"]:
        known([{"id": example["id"], "answers": None}], "answers")
    return [answer["text"] for answer in example["answers"]] or [""]


def squad2_metrics(threshold: float = 0.0) -> Metrics:
    """The values of the SQuAD 2.0 script, run with each answer's "no_answer" as its probability
    that there is none and `threshold` to hold against it: exact and f1, of all questions, of those
    that have an answer and of those that have none; and the thresholds that would be best.
    """
    exact = spans.exact(spans.normalise_english)

    def measure(answers, examples):
        aligned(answers, examples)
        texts, none = [a["text"] for a in answers], [float(a["no_answer"]) for a in answers]
        true = [
            [t for t in answer_texts(e) if spans.normalise_english(t)] or [""] for e in examples
        ]
        has = [bool(example["answers"]) for example in examples]
        values: dict[str, float] = {}
        for name, metric in (("exact", exact), ("f1", spans.words_or_nothing_f1)):
            raw = [spans.best_over(metric, *pair) for pair in zip(texts, true, strict=True)]
            final = [
                float(not h) if p > threshold else s for s, p, h in zip(raw, none, has, strict=True)
            ]
            values[name] = 100 * metrics.mean(final)
            for part, wanted in _PARTS:
                of_part = [s for s, h in zip(final, has, strict=True) if h == wanted]
                if of_part:
                    values[f"{part}_{name}"] = 100 * metrics.mean(of_part)
            best, at = spans.best_threshold(raw, texts, none, has)
            values |= {f"best_{name}": 100 * best, f"best_{name}_thresh": at}
        return values

    return measure


def write_text(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines.

    Raises:
      StorageError: it cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def write_json(path: str | Path, value) -> None:
    write_text(path, [json.dumps(value, ensure_ascii=False)])


def write_labels(labels: Sequence[str]):
    """A writer of the names of classes as TSV: id, label."""

    def write(answers, examples, path):
        aligned(answers, examples)
        names = [labels[i] for i in indices(answers)]
        rows = [f"{e['id']}\t{name}" for e, name in zip(examples, names, strict=True)]
        write_text(path, ["id\tlabel", *rows])

    return write


def write_scores(answers, examples, path) -> None:
    """Scores as TSV: id, score."""
    aligned(answers, examples)
    rows = [f"{e['id']}\t{float(a):.6f}" for e, a in zip(examples, answers, strict=True)]
    write_text(path, ["id\tscore", *rows])


def write_tags(labels: Sequence[str]):
    """A writer of what the CoNLL script reads: word, true tag if known, tag; spaces in between."""

    def write(answers, examples, path):
        aligned(answers, examples)
        rows = []
        for tags, example in zip(answers, examples, strict=True):
            columns = [example["words"], [labels[t] for t in tags]]
            if example["tags"] is not None:
                columns.insert(1, [labels[t] for t in example["tags"]])
            rows += [" ".join(row) for row in zip(*columns, strict=True)] + [""]
        write_text(path, rows)

    return write


def write_spans(threshold: float = 0.0):
    """A writer of {id: text} as JSON: "" where no_answer is above the threshold."""

    def write(answers, examples, path):
        aligned(answers, examples)
        texts = ["" if a["no_answer"] > threshold else a["text"] for a in answers]
        write_json(path, dict(zip([e["id"] for e in examples], texts, strict=True)))

    return write


def write_spans_and_doubt(answers, examples, path) -> None:
    """SQuAD 2.0: {id: text} as JSON, and beside it, NAME_na_probs.json, {id: no_answer}."""
    write_spans()(answers, examples, path)
    doubt = Path(path).with_name(f"{Path(path).stem}_na_probs.json")
    write_json(
        doubt, {e["id"]: float(a["no_answer"]) for e, a in zip(examples, answers, strict=True)}
    )


def write_commas(columns: Sequence[str], row: Callable[[Any, Example], Sequence[Any]]):
    """A writer of CSV with a header, a row per answer."""

    def write(answers, examples, path):
        aligned(answers, examples)
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(row(a, e) for a, e in zip(answers, examples, strict=True))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None

    return write
