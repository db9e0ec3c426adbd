"""GLUE (Wang et al., 2019): nine tasks of sentences and pairs, and the diagnostic set AX.

Files are those of the benchmark, in FOLDER/SST-2/train.tsv or FOLDER/train.tsv; the result file is
the server's: "index, prediction" in the order of the publisher's file, in which TFDS is not.
MNLI has two validation and two test sets: `mnli` takes the matched ones, `mnli_mismatched` the
others; both train on the same.
"""

from collections.abc import Sequence
from pathlib import Path

from flaxlm.tasks import files
from flaxlm.tasks.base import Classes, Example, Form, Score, Task
from flaxlm.tasks.measures import (
    ACCURACY,
    CORRELATIONS,
    Metrics,
    aligned,
    class_metrics,
    indices,
    write_text,
)
from flaxlm.tasks.metrics import accuracy, binary_f1, matthews

_ENTAILS = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_COLA = ("source", "label", "mark", "sentence")  # of the files with labels, which have no header
_SPLITS = {"train": ("train",), "validation": ("dev",), "test": ("test",)}


def _task(
    key: str,
    folder: str,
    form: Form,
    columns: Sequence[str],
    label: str,
    metrics: Metrics,
    main: str,
    *,
    coded: bool = True,
    suffix: str = "",
    fields: Sequence[str] = (),
    splits: Sequence[str] = tuple(_SPLITS),
) -> Task:
    """A task of GLUE.

    Args:
      folder: of its files.
      columns: of the text and, of pairs, the other text.
      label: the column of the label.
      coded: the files have a label's number, not its name.
      suffix: of the names of the files of the validation and test splits.
      fields: the texts' names in TFDS where these are not the columns.
    """
    name = f"glue/{key}"
    texts = tuple(fields or columns)

    def parse(path: Path, split: str) -> list[Example]:
        header = _COLA if key == "cola" and split != "test" else None
        rows = files.table(path, header=header, skip_short=key == "qqp")
        return [_example(at, row, place) for at, (place, row) in enumerate(rows)]

    def _example(at: int, row, place: str) -> Example:
        text, pair = [*(files.field(row, column, place) for column in columns), None][:2]
        value = None if label not in row else true_label(row[label], place)
        return {"id": str(at), "text": text, "pair": pair, "label": value}

    def true_label(text: str, place: str):
        if isinstance(form, Score):
            return files.number(text, place, form.low, form.high)
        if coded:
            return files.class_index([str(i) for i in range(len(form.labels))], text, place)
        return files.class_index(form.labels, text, place)

    def convert(record, place: str) -> Example:
        text, pair = [*(files.field(record, field, place) for field in texts), None][:2]
        value = record["label"] if record["label"] >= 0 else None
        return {"id": str(record["idx"]), "text": text, "pair": pair, "label": value}

    def write(answers, examples, path) -> None:
        aligned(answers, examples)
        if isinstance(form, Score):
            shown = [f"{min(max(float(a), form.low), form.high):.3f}" for a in answers]
        else:
            shown = [str(i) if coded else form.labels[i] for i in indices(answers)]
        numbers = [int(example["id"]) for example in examples]
        rows = sorted(zip(numbers, shown, strict=True))
        write_text(path, ["index\tprediction", *(f"{i}\t{answer}" for i, answer in rows)])

    def names(split: str) -> list[str]:
        stems = [stem + (suffix if split != "train" else "") for stem in _SPLITS[split]]
        if key == "ax":
            stems = ["diagnostic", "AX", "test"]
        return [f"{place}{stem}.tsv" for place in (f"{folder}/", "") for stem in stems]

    matched = {"train": "train", "validation": "validation_matched", "test": "test_matched"}
    mismatched = {s: t.replace("matched", "mismatched") for s, t in matched.items()}
    read = files.reader(
        name,
        files={split: names(split) for split in splits},
        parse=parse,
        tfds="glue/mnli" if folder == "MNLI" else name,
        convert=convert,
        tfds_splits={"mnli": matched, "mnli_mismatched": mismatched}.get(key),
    )
    return Task(name, form, read, metrics, main, write)


_PAIR = ("sentence1", "sentence2")
_F1 = class_metrics(accuracy=accuracy, f1=binary_f1)
_MATTHEWS = class_metrics(matthews=matthews, accuracy=accuracy)
_MNLI = dict(form=Classes(_NLI, pair=True), columns=_PAIR, label="gold_label", metrics=ACCURACY)
_MNLI |= dict(folder="MNLI", main="accuracy", coded=False, fields=("premise", "hypothesis"))

TASKS = {
    "cola": _task("cola", "CoLA", Classes(("unacceptable", "acceptable")), ("sentence",), "label",
                  _MATTHEWS, "matthews"),
    "sst2": _task("sst2", "SST-2", Classes(("negative", "positive")), ("sentence",), "label",
                  ACCURACY, "accuracy"),
    "mrpc": _task("mrpc", "MRPC", Classes(("not_equivalent", "equivalent"), pair=True),
                  ("#1 String", "#2 String"), "Quality", _F1, "f1", fields=_PAIR),
    "qqp": _task("qqp", "QQP", Classes(("not_duplicate", "duplicate"), pair=True),
                 ("question1", "question2"), "is_duplicate", _F1, "f1"),
    "stsb": _task("stsb", "STS-B", Score(0.0, 5.0, pair=True), _PAIR, "score",
                  CORRELATIONS, "spearman"),
    "mnli": _task("mnli", suffix="_matched", **_MNLI),
    "mnli_mismatched": _task("mnli_mismatched", suffix="_mismatched", **_MNLI),
    "qnli": _task("qnli", "QNLI", Classes(_ENTAILS, pair=True), ("question", "sentence"), "label",
                  ACCURACY, "accuracy", coded=False),
    "rte": _task("rte", "RTE", Classes(_ENTAILS, pair=True), _PAIR, "label",
                 ACCURACY, "accuracy", coded=False),
    "wnli": _task("wnli", "WNLI", Classes(("not_entailment", "entailment"), pair=True), _PAIR,
                  "label", ACCURACY, "accuracy"),
    "ax": _task("ax", "diagnostic", Classes(_NLI, pair=True), _PAIR, "label", _MATTHEWS,
                "matthews", coded=False, fields=("premise", "hypothesis"), splits=("test",)),
}  # fmt: skip
