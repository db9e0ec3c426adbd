"""Reads the files of KLUE: JSON arrays, TSV files of sentences with "##" lines, SQuAD's JSON.

Each reader takes a file to the examples of its task (`flaxlm.tasks.klue`); `reader` finds the file.
Labels that a test file does not have are None.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flaxlm.errors import DataError
from flaxlm.tasks import files
from flaxlm.tasks.base import Example
from flaxlm.tasks.klue_labels import ARCS, NER, NLI, RELATIONS, SLOTS, TAGS, TOPICS
from flaxlm.tasks.squad import questions


def _names(stem: str, split: str, kind: str) -> list[str]:
    full = [f"{stem}-{version}" for version in ("v1.1", "v1")]
    return [f"{place}{v}_{split}.{kind}" for v in full for place in (f"{v}/", "")]


def reader(key: str, stem: str, kind: str, parse: Callable[[Path], list[Example]]):
    """`(split, folder) -> examples` of a task whose files begin with `stem`."""
    theirs = {"train": "train", "validation": "dev", "test": "test"}
    names = {split: _names(stem, name, kind) for split, name in theirs.items()}
    return files.reader(f"klue/{key}", files=names, parse=lambda path, split: parse(path))


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) of the objects of a JSON array."""
    whole = files.json_file(path)
    if not isinstance(whole, list):
        raise DataError(f"{path}: a JSON {type(whole).__name__}, expected an array")
    for at, row in enumerate(whole):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {at} is no JSON object")
    return [(f"{path}: {files.field(row, 'guid', str(path))}", row) for row in whole]


def _label(row: dict[str, Any], name: str, labels: Sequence[str], place: str) -> int | None:
    return files.class_index(labels, row[name], place) if name in row else None


def topics(path: Path) -> list[Example]:
    return [
        {
            "id": row["guid"],
            "text": files.field(row, "title", place),
            "pair": None,
            "label": _label(row, "label", TOPICS, place),
        }
        for place, row in _rows(path)
    ]


def similarity(path: Path) -> list[Example]:
    examples = []
    for place, row in _rows(path):
        label = None
        if "labels" in row:
            value = files.field(row["labels"], "real-label", place, (int, float))
            label = files.number(str(value), place, 0.0, 5.0)
        text, pair = (files.field(row, name, place) for name in ("sentence1", "sentence2"))
        examples.append({"id": row["guid"], "text": text, "pair": pair, "label": label})
    return examples


def inference(path: Path) -> list[Example]:
    return [
        {
            "id": row["guid"],
            "text": files.field(row, "premise", place),
            "pair": files.field(row, "hypothesis", place),
            "label": _label(row, "gold_label", NLI, place),
        }
        for place, row in _rows(path)
    ]


def relations(path: Path) -> list[Example]:
    return [
        {
            "id": row["guid"],
            "text": _marked(row, place),
            "pair": None,
            "label": _label(row, "label", RELATIONS, place),
        }
        for place, row in _rows(path)
    ]


def _marked(row: dict[str, Any], place: str) -> str:
    """The sentence with marks around its two entities."""
    text, ends = files.field(row, "sentence", place), []
    for name, mark in (("subject_entity", "subj"), ("object_entity", "obj")):
        entity = files.field(row, name, place, dict)
        word = files.field(entity, "word", place)
        start = files.field(entity, "start_idx", place, int)
        files.check_span(text, {"text": word, "start": start}, place)
        ends.append((start, files.field(entity, "end_idx", place, int) + 1, mark))
    (first, end, mark), (start, last, other) = sorted(ends)
    if end > start:
        raise DataError(f"{place}: the entities overlap")
    parts = (text[:first], f"<{mark}>", text[first:end], f"</{mark}>", text[end:start])
    return "".join((*parts, f"<{other}>", text[start:last], f"</{other}>", text[last:]))


def _blocks(path: Path) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(guid, [(place, columns of a line)]) of the sentences of a TSV file of KLUE.

    "## guid<TAB>sentence" begins one; the lines before the first with "##" describe the file.
    """
    found: list[tuple[str, list]] = []
    for number, line in files.lines(path):
        if line.startswith("##"):
            guid, tab, _ = line[2:].partition("\t")
            if tab and ":" not in guid:
                found.append((guid.strip(), []))
        elif line.strip("\t"):
            if not found:
                raise DataError(f"{path}:{number}: no line '## guid<TAB>sentence' before it")
            found[-1][1].append((f"{path}:{number}", line.split("\t")))
    return [(guid, rows) for guid, rows in found if rows]


def _checked(row: tuple[str, list[str]], columns: int) -> list[str]:
    place, fields = row
    if len(fields) != columns:
        raise DataError(f"{place}: {len(fields)} columns, expected {columns}")
    return fields


def entities(path: Path) -> list[Example]:
    examples = []
    for guid, rows in _blocks(path):
        pairs = [_checked(row, 2) for row in rows]
        tags = [files.class_index(NER, p[1], row[0]) for p, row in zip(pairs, rows, strict=True)]
        examples.append({"id": guid, "words": [p[0] for p in pairs], "tags": tags})
    return examples


def arcs(path: Path) -> list[Example]:
    examples = []
    for guid, rows in _blocks(path):
        columns = [_checked(row, 6) for row in rows]
        heads = []
        for at, ((place, _), fields) in enumerate(zip(rows, columns, strict=True), 1):
            if fields[0] != str(at):
                raise DataError(f"{place}: word {fields[0]!r} where {at} was expected")
            if fields[4] not in map(str, range(len(rows) + 1)):
                raise DataError(f"{place}: head {fields[4]!r} is not from 0 to {len(rows)}")
            files.class_index(TAGS, fields[3].rpartition("+")[2], place)
            heads.append(int(fields[4]))
        places = [place for place, _ in rows]
        relations = [
            files.class_index(ARCS, f[5], place) for f, place in zip(columns, places, strict=True)
        ]
        words, lemmas, pos = ([f[i] for f in columns] for i in (1, 2, 3))
        examples.append(
            {"id": guid, "words": words, "lemmas": lemmas, "pos": pos, "heads": heads,
             "relations": relations}
        )  # fmt: skip
    return examples


def turns(path: Path) -> list[Example]:
    examples = []
    for place, row in _rows(path):
        said: list[str] = []
        asked = 0
        for turn in files.field(row, "dialogue", place, list):
            said.append(f"{files.field(turn, 'role', place)}: {files.field(turn, 'text', place)}")
            if turn["role"] != "user":
                continue
            state = None
            if "state" in turn:
                values = files.field(turn, "state", place, list)
                state = dict(_slot(str(value), place) for value in values)
            identity = f"{row['guid']}-{asked}"
            examples.append({"id": identity, "text": "\n".join(said), "state": state})
            asked += 1
    return examples


def _slot(text: str, place: str) -> tuple[str, str]:
    """(slot, value) of "domain-slot-value"."""
    parts = text.split("-", maxsplit=2)
    slot = "-".join(parts[:2])
    if len(parts) != 3 or slot not in SLOTS:
        raise DataError(f"{place}: state {text!r} is of no slot of the ontology")
    return slot, parts[2]


def ontology(folder: str) -> dict[str, list[str]]:
    """slot -> the values it may have, "none" and "dontcare" among them, from the publisher's file.

    Raises:
      DataError: it is of other slots than `SLOTS`.
    """
    names = ("wos-v1.1/ontology.json", "wos-v1/ontology.json", "ontology.json", "wos_ontology.json")
    path = files.locate(folder, names, "task:klue/wos")
    found = files.json_file(path)
    if not isinstance(found, dict) or set(found) != set(SLOTS):
        raise DataError(f"{path} has other slots than KLUE's {len(SLOTS)}")
    return found


def passages(path: Path) -> list[Example]:
    return questions(path, no_answer=True, id_name="guid")
