"""Single sentences: polarity (Pang and Lee, 2005), subjectivity (Pang and Lee, 2004) and how well
formed a query is (Faruqui and Das, 2018).

The first two are a file per class, without splits. Their sentences are put in the order of a hash
of their words, so that a slice such as train[90%:] has both classes, is the same everywhere, and
two copies of a sentence are beside each other.
"""

from pathlib import Path

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Classes, Example, Score, Task
from flaxlm.tasks.measures import ACCURACY, CORRELATIONS, write_labels, write_scores


def _sentences(path: Path) -> list[str]:
    """Lines of UTF-8 or, as first published, of Latin-1; empty ones are left out and counted."""
    try:
        found = [line for _, line in files.lines(path)]
    except DataError:
        found = [line for _, line in files.lines(path, "latin-1")]
    left = [line.strip() for line in found if line.strip()]
    files.said(path, len(found) - len(left), "empty lines")
    return left


def _files_of_classes(name: str, labels: tuple[str, ...], stems: tuple[str, ...]) -> Task:
    def parse(path: Path, split: str) -> list[Example]:
        examples = []
        for label, stem in enumerate(stems):
            file = files.locate(str(path.parent), (stem,), f"task:{name}")
            for number, text in enumerate(_sentences(file), 1):
                identity = f"{stem}:{number}"
                examples.append({"id": identity, "text": text, "pair": None, "label": label})
        return files.hashed_order(examples)

    read = files.reader(name, files={"train": stems[:1]}, parse=parse)
    return Task(name, Classes(labels), read, ACCURACY, "accuracy", write_labels(labels))


def _queries(path: Path, split: str) -> list[Example]:
    rows = files.table(path, header=("query", "rating"))
    return [
        {
            "id": str(at),
            "text": row["query"],
            "pair": None,
            "label": files.number(row["rating"], place, 0.0, 1.0),
        }
        for at, (place, row) in enumerate(rows)
    ]


def _wellformedness() -> Task:
    name = "sentences/wellformedness"
    names = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
    read = files.reader(name, files=names, parse=_queries)
    return Task(name, Score(0.0, 1.0), read, CORRELATIONS, "spearman", write_scores)


TASKS = {
    "polarity": _files_of_classes(
        "sentences/polarity", ("negative", "positive"), ("rt-polarity.neg", "rt-polarity.pos")
    ),
    "subjectivity": _files_of_classes(
        "sentences/subjectivity",
        ("objective", "subjective"),
        ("plot.tok.gt9.5000", "quote.tok.gt9.5000"),
    ),
    "wellformedness": _wellformedness(),
}
