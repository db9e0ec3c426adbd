"""Korean sets beside KLUE: NSMC (Park, 2016), KorSTS and KorNLI (Ham et al., 2020).

KorNLI has two training files; `kornli` takes the one made of MNLI, `kornli_snli` that of SNLI, and
an experiment may mix both. NSMC has no validation split: take a slice of train, which is put in the
order of a hash of the texts for that. KorQuAD is with SQuAD, in `squad.py`.
"""

from pathlib import Path

from flaxlm.tasks import files
from flaxlm.tasks.base import Classes, Example, Score, Task
from flaxlm.tasks.measures import ACCURACY, CORRELATIONS, write_labels, write_scores

_NSMC = ("negative", "positive")
_NLI = ("entailment", "neutral", "contradiction")


def _nsmc(path: Path, split: str) -> list[Example]:
    examples = [
        {
            "id": files.field(row, "id", place),
            "text": files.field(row, "document", place),
            "pair": None,
            "label": files.class_index("01", files.field(row, "label", place), place),
        }
        for place, row in files.table(path)
    ]
    return files.hashed_order(examples) if split == "train" else examples


def _korsts(path: Path, split: str) -> list[Example]:
    return [
        {
            "id": str(at),
            "text": files.field(row, "sentence1", place),
            "pair": files.field(row, "sentence2", place),
            "label": files.number(files.field(row, "score", place), place, 0.0, 5.0),
        }
        for at, (place, row) in enumerate(files.table(path))
    ]


def _kornli(path: Path, split: str) -> list[Example]:
    return [
        {
            "id": str(at),
            "text": files.field(row, "sentence1", place),
            "pair": files.field(row, "sentence2", place),
            "label": files.class_index(_NLI, files.field(row, "gold_label", place), place),
        }
        for at, (place, row) in enumerate(files.table(path))
    ]


def _task(key: str, form, parse, metrics, main: str, write, **names: tuple[str, ...]) -> Task:
    read = files.reader(f"korean/{key}", files=names, parse=parse)
    return Task(f"korean/{key}", form, read, metrics, main, write)


def _nli(key: str, train: str) -> Task:
    return _task(
        key,
        Classes(_NLI, pair=True),
        _kornli,
        ACCURACY,
        "accuracy",
        write_labels(_NLI),
        train=(train,),
        validation=("xnli.dev.ko.tsv",),
        test=("xnli.test.ko.tsv",),
    )


TASKS = {
    "nsmc": _task("nsmc", Classes(_NSMC), _nsmc, ACCURACY, "accuracy", write_labels(_NSMC),
                  train=("ratings_train.txt", "nsmc*.tsv"), test=("ratings_test.txt",)),
    "korsts": _task("korsts", Score(0.0, 5.0, pair=True), _korsts, CORRELATIONS, "spearman",
                    write_scores, train=("sts-train.tsv",), validation=("sts-dev.tsv",),
                    test=("sts-test.tsv",)),
    "kornli": _nli("kornli", "multinli.train.ko.tsv"),
    "kornli_snli": _nli("kornli_snli", "snli_1.0_train.ko.tsv"),
}  # fmt: skip
