"""Named entities in files of columns: CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003) and WNUT-17
(Derczynski et al., 2017).

A line is a word and its columns, the tag last; an empty line ends a sentence. CoNLL-2003 was
published with tags in which B- stands only between neighbours of one type; they are read as B- at
every beginning, as TFDS has them. The result file is what the CoNLL script takes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Example, Tags, Task
from flaxlm.tasks.measures import tag_metrics, write_tags


def tags_of(types: Sequence[str]) -> tuple[str, ...]:
    """("O", "B-" and "I-" of each type)."""
    return ("O", *(f"{begin}-{kind}" for kind in types for begin in "BI"))


def sentences(path: Path, columns: int) -> list[tuple[str, list[list[str]]]]:
    """(place, [columns of a word]) of each sentence.

    Columns are told apart by tabs, or by spaces in a file without them; lines that begin with
    "-DOCSTART-" tell documents apart and are no words.

    Raises:
      DataError: a line with another number of columns.
    """
    found: list[tuple[str, list[list[str]]]] = []
    words: list[list[str]] = []
    for number, line in files.lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            words = []
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != columns:
            raise DataError(f"{path}:{number}: {len(fields)} columns, expected {columns}: {line!r}")
        if not words:
            found.append((f"{path}:{number}", words))
        words.append(fields)
    return found


def begun(tags: Sequence[str]) -> list[str]:
    """Tags with B- at the beginning of every entity, of tags with I- there."""
    before = ["O", *tags]
    return [
        f"B-{tag[2:]}" if tag[0] == "I" and before[i][2:] != tag[2:] else tag
        for i, tag in enumerate(tags)
    ]


def _task(key: str, labels: tuple[str, ...], columns: int, names, tfds: str = "") -> Task:
    def parse(path: Path, split: str) -> list[Example]:
        examples = []
        for at, (place, words) in enumerate(sentences(path, columns)):
            tags = [word[-1] for word in words]
            tags = begun(tags) if key == "conll2003" else tags
            indexed = [files.class_index(labels, tag, place) for tag in tags]
            examples.append({"id": str(at), "words": [word[0] for word in words], "tags": indexed})
        return examples

    def convert(record: dict[str, Any], place: str) -> Example:
        return {"id": place, "words": record["tokens"], "tags": record["ner"]}

    read = files.reader(
        f"ner/{key}", files=names, parse=parse, tfds=tfds, convert=convert if tfds else None,
        tfds_splits={"train": "train", "validation": "dev", "test": "test"} if tfds else None,
    )  # fmt: skip
    metrics = tag_metrics(labels)
    return Task(f"ner/{key}", Tags(labels), read, metrics, "f1", write_tags(labels))


_CONLL = {
    "train": ("eng.train", "train.txt"),
    "validation": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}
_TFDS = "conll2003/conll2003"  # its configuration has the name of the set
_WNUT = {
    "train": ("wnut17train.conll",),
    "validation": ("emerging.dev.conll",),
    "test": ("emerging.test.annotated",),
}
_WNUT_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")

TASKS = {
    "conll2003": _task("conll2003", tags_of(("PER", "ORG", "LOC", "MISC")), 4, _CONLL, _TFDS),
    "wnut17": _task("wnut17", tags_of(_WNUT_TYPES), 2, _WNUT),
}
