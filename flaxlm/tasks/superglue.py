"""SuperGLUE (Wang et al., 2019): eight tasks, and the diagnostic sets AX-b and AX-g.

Files are those of the benchmark, in FOLDER/BoolQ/train.jsonl or FOLDER/train.jsonl; the result
file is the server's JSONL. How each becomes an example of a form:

* COPA's question is put in words behind its premise; ReCoRD is a span of the passage.
* MultiRC judges one answer at a time: passage, and question with answer.
* WiC's word comes before the first sentence; of WSC, the two spans stand between asterisks.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Choices, Classes, Example, Spans, Task
from flaxlm.tasks.measures import (
    ACCURACY,
    Metrics,
    aligned,
    class_metrics,
    indices,
    known,
    span_metrics,
    write_text,
)
from flaxlm.tasks.metrics import accuracy, binary_f1, grouped_exact, macro_f1, matthews
from flaxlm.tasks.spans import exact, normalise_english, words_f1

_NO_YES = ("False", "True")
_ENTAILS = ("entailment", "not_entailment")
_CB = ("entailment", "contradiction", "neutral")
_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_SPLITS = {"train": ("train",), "validation": ("val",), "test": ("test",)}

Parts = tuple[str, str | None]


def _pair(first: str, second: str) -> Callable[[dict, str], Parts]:
    return lambda row, place: (files.field(row, first, place), files.field(row, second, place))


def _word_in_context(row: dict[str, Any], place: str) -> Parts:
    word, first, second = (files.field(row, k, place) for k in ("word", "sentence1", "sentence2"))
    return f"{word}: {first}", second


def _marked_spans(row: dict[str, Any], place: str) -> Parts:
    """The text with both spans between asterisks. "spanN_index" counts words."""
    target = row["target"] if "target" in row else row  # TFDS has its fields beside the text
    text = files.field(row, "text", place)
    words = [found.span() for found in re.finditer(r"\S+", text)]
    marks = []
    for name in ("span1", "span2"):
        first = files.field(target, f"{name}_index", place, int)
        span = files.field(target, f"{name}_text", place)
        if not 0 <= first < len(words):
            raise DataError(f"{place}: {name} begins at word {first} of {len(words)}")
        start = words[first][0]
        end = start + len(span)
        if text[start:end].lower() != span.lower():  # the publisher's text differs in places
            end = words[min(first + len(span.split()), len(words)) - 1][1]
        marks += [start, end]
    for at in sorted(marks, reverse=True):
        text = f"{text[:at]}*{text[at:]}"
    return text, None


def _write(answers, examples, path, shown: Callable[[Any], Any]) -> None:
    aligned(answers, examples)
    rows = [(e["id"], shown(a)) for e, a in zip(examples, answers, strict=True)]
    rows = [(int(i) if i.isdigit() else i, a) for i, a in rows]
    rows.sort(key=lambda row: (isinstance(row[0], str), row[0]))
    write_text(path, [json.dumps({"idx": i, "label": a}, ensure_ascii=False) for i, a in rows])


def _read(key: str, folder: str, parse, convert, splits=tuple(_SPLITS)):
    def names(split: str) -> list[str]:
        stems = _SPLITS[split] if key not in ("axb", "axg") else (folder, "test")
        return [f"{place}{stem}.jsonl" for place in (f"{folder}/", "") for stem in stems]

    return files.reader(
        f"superglue/{key}",
        files={split: names(split) for split in splits},
        parse=parse,
        tfds=f"super_glue/{key}",
        convert=convert,
    )


def _classes(
    key: str,
    folder: str,
    labels: tuple[str, ...],
    parts: Callable[[dict, str], Parts],
    metrics: Metrics = ACCURACY,
    main: str = "accuracy",
    splits=tuple(_SPLITS),
    shown: tuple[str, ...] = (),
) -> Task:
    form = Classes(labels, pair=key != "wsc")

    def convert(record, place: str) -> Example:
        text, pair = parts(record, place)
        value = record["label"] if record["label"] >= 0 else None
        return {"id": str(record["idx"]), "text": text, "pair": pair, "label": value}

    def parse(path: Path, split: str) -> list[Example]:
        examples = []
        for place, row in files.json_lines(path):
            text, pair = parts(row, place)
            value = row["label"] if "label" in row else None
            if value is not None:
                value = files.class_index(labels, str(value), place)
            number = files.field(row, "idx", place, int)
            examples.append({"id": str(number), "text": text, "pair": pair, "label": value})
        return examples

    def write(answers, examples, path) -> None:
        _write(indices(answers), examples, path, lambda i: (shown or labels)[i])

    read = _read(key, folder, parse, convert, splits)
    return Task(f"superglue/{key}", form, read, metrics, main, write)


def _copa() -> Task:
    def example(row, label, place: str) -> Example:
        question = files.field(row, "question", place)
        if question not in _QUESTIONS:
            raise DataError(f"{place}: question {question!r} is neither cause nor effect")
        return {
            "id": str(files.field(row, "idx", place, int)),
            "text": f"{files.field(row, 'premise', place)} {_QUESTIONS[question]}",
            "endings": [files.field(row, name, place) for name in ("choice1", "choice2")],
            "label": label,
        }

    def parse(path: Path, split: str) -> list[Example]:
        def label(row, place: str):
            if "label" not in row:
                return None
            return files.class_index(("0", "1"), str(row["label"]), place)

        return [example(row, label(row, place), place) for place, row in files.json_lines(path)]

    def convert(record, place: str) -> Example:
        return example(record, record["label"] if record["label"] >= 0 else None, place)

    def write(answers, examples, path) -> None:
        _write(indices(answers), examples, path, int)

    read = _read("copa", "COPA", parse, convert)
    return Task("superglue/copa", Choices(2), read, ACCURACY, "accuracy", write)


def _multirc() -> Task:
    def example(idx: tuple[int, int, int], passage: str, question: str, answer: str, label):
        return {
            "id": "-".join(map(str, idx)),
            "text": passage,
            "pair": f"{question} {answer}",
            "label": label,
            "group": "-".join(map(str, idx[:2])),
        }

    def parse(path: Path, split: str) -> list[Example]:
        examples = []
        for place, row in files.json_lines(path):
            passage = files.field(row, "passage", place, dict)
            for question in files.field(passage, "questions", place, list):
                for answer in files.field(question, "answers", place, list):
                    idx = tuple(files.field(x, "idx", place, int) for x in (row, question, answer))
                    label = None
                    if "label" in answer:
                        label = files.class_index(("0", "1"), str(answer["label"]), place)
                    texts = [files.field(passage, "text", place)]
                    texts += [files.field(question, "question", place)]
                    texts += [files.field(answer, "text", place)]
                    examples.append(example(idx, *texts, label))
        return examples

    def convert(record, place: str) -> Example:
        idx = tuple(record["idx"][name] for name in ("paragraph", "question", "answer"))
        label = record["label"] if record["label"] >= 0 else None
        return example(idx, record["paragraph"], record["question"], record["answer"], label)

    def metrics(answers, examples) -> dict[str, float]:
        aligned(answers, examples)
        given, true = indices(answers), known(examples, "label")
        groups = [example["group"] for example in examples]
        return {
            "f1_a": 100 * binary_f1(given, true),
            "exact": 100 * grouped_exact(given, true, groups),
        }

    def write(answers, examples, path) -> None:
        aligned(answers, examples)
        passages: dict[int, dict[int, list]] = {}
        for label, example in zip(indices(answers), examples, strict=True):
            passage, question, answer = map(int, example["id"].split("-"))
            row = passages.setdefault(passage, {}).setdefault(question, [])
            row.append({"idx": answer, "label": label})
        rows = []
        for idx, asked in sorted(passages.items()):
            questions = [{"idx": q, "answers": some} for q, some in sorted(asked.items())]
            rows.append(json.dumps({"idx": idx, "passage": {"questions": questions}}))
        write_text(path, rows)

    read = _read("multirc", "MultiRC", parse, convert)
    return Task("superglue/multirc", Classes(_NO_YES, pair=True), read, metrics, "f1_a", write)


def _record() -> Task:
    def example(idx, passage: str, query: str, answers) -> Example:
        return {
            "id": str(idx),
            "question": query,
            "context": passage,
            "answers": answers,
            "impossible": False,
        }

    def rows(path: Path):
        if ".json" not in path.suffixes:
            return files.json_lines(path)
        whole = files.json_file(path)  # as ReCoRD was first published, with names for numbers
        return [(str(path), row) for row in files.field(whole, "data", str(path), list)]

    def parse(path: Path, split: str) -> list[Example]:
        examples = []
        for place, row in rows(path):
            passage = files.field(row, "passage", place, dict)
            text = files.field(passage, "text", place)
            for qa in files.field(row, "qas", place, list):
                answers = []
                for answer in files.field(qa, "answers", place, list) if "answers" in qa else []:
                    start = files.field(answer, "start", place, int)
                    answers.append({"text": files.field(answer, "text", place), "start": start})
                    files.check_span(text, answers[-1], place)
                identity = files.field(qa, "idx" if "idx" in qa else "id", place, (int, str))
                examples.append(example(identity, text, files.field(qa, "query", place), answers))
        return examples

    def convert(record, place: str) -> Example:
        passage, answers = record["passage"], []
        for answer in record["answers"]:  # TFDS says which entity, not where
            for found in re.finditer(rf"\b{re.escape(answer)}\b", passage) if answer else ():
                answers.append({"text": answer, "start": found.start()})
        if record["answers"] and not answers:
            raise DataError(f"{place}: no answer is in the passage")
        return example(record["idx"]["query"], passage, record["query"], answers)

    def write(answers, examples, path) -> None:
        _write(answers, examples, path, lambda answer: answer["text"])

    metrics = span_metrics(exact(normalise_english), words_f1)
    read = _read("record", "ReCoRD", parse, convert)
    return Task("superglue/record", Spans(), read, metrics, "f1", write)


_CB_METRICS = class_metrics(accuracy=accuracy, f1=macro_f1)
_AX_METRICS = class_metrics(matthews=matthews, accuracy=accuracy)
_LOWER = ("false", "true")

TASKS = {
    "boolq": _classes("boolq", "BoolQ", _NO_YES, _pair("question", "passage"), shown=_LOWER),
    "cb": _classes("cb", "CB", _CB, _pair("premise", "hypothesis"), _CB_METRICS),
    "copa": _copa(),
    "multirc": _multirc(),
    "record": _record(),
    "rte": _classes("rte", "RTE", _ENTAILS, _pair("premise", "hypothesis")),
    "wic": _classes("wic", "WiC", _NO_YES, _word_in_context, shown=_LOWER),
    "wsc": _classes("wsc", "WSC", _NO_YES, _marked_spans),
    "axb": _classes("axb", "AX-b", _ENTAILS, _pair("sentence1", "sentence2"), _AX_METRICS,
                    "matthews", ("test",)),
    "axg": _classes("axg", "AX-g", _ENTAILS, _pair("premise", "hypothesis"), ACCURACY,
                    "accuracy", ("test",)),
}  # fmt: skip
