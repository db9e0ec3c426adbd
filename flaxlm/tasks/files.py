"""Files of tasks: found in a folder, read line by line, every fault with its file and line.

Readers of tasks are put together here: `reader(...)` reads a split from the publisher's files or
from TFDS. Whatever a reader leaves out is counted and said as a warning.
"""

import csv
import fnmatch
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxlm.data.tfds_source import records as tfds_records
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.tasks.base import Example

log = logging.getLogger(__name__)

Parse = Callable[[Path, str], list[Example]]  # (file, split) -> examples
Convert = Callable[[dict[str, Any], str], Example]  # (TFDS record, its place) -> example


def reader(
    name: str,
    *,
    files: Mapping[str, Sequence[str]],
    parse: Parse,
    tfds: str = "",
    convert: Convert | None = None,
    tfds_splits: Mapping[str, str] | None = None,
) -> Callable[[str, str], list[Example]]:
    """A task's reader.

    Args:
      name: the task's.
      files: split -> names the file may have in the folder, the first that is there is read; with
        `*` and `?` for any characters. A name may go without or with .gz.
      parse: reads a file.
      tfds: the data set's name in TFDS; "": it is not there.
      convert: makes an example of a TFDS record.
      tfds_splits: split -> its name in TFDS where that is another.
    """

    def read(split: str, folder: str) -> list[Example]:
        if split not in files:
            known = " or ".join(files)
            raise ConfigError(
                f"task:{name} has no split {split!r}, only {known}; a slice may do: "
                f"{next(iter(files))}[90%:]"
            )
        if folder:
            return parse(locate(folder, files[split], f"task:{name}"), split)
        if convert is None:
            raise MissingInput(
                f"task:{name} is not in TFDS; give the folder with its files, "
                f"task:{name}@FOLDER with FOLDER/{files[split][0]}"
            )
        theirs = tfds_splits[split] if tfds_splits else split
        records = tfds_records(tfds, theirs)
        return [
            convert(_plain(record, place), place)
            for record, place in ((r, f"tfds:{tfds}:{theirs}:{i}") for i, r in enumerate(records))
        ]

    return read


def _plain(value, place: str):
    """A TFDS value in Python's own types."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: {error}") from None
    if isinstance(value, dict):
        return {key: _plain(part, place) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, place) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def locate(folder: str, names: Sequence[str], who: str) -> Path:
    """The first of `names` that `folder` has; `folder` itself if it is a file.

    Raises:
      MissingInput: it has none.
      ConfigError: several files fit the first name that fits.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        return root
    for name in names:
        place = root / Path(name).parent
        try:
            there = sorted(file for file in place.iterdir() if file.is_file())
        except (FileNotFoundError, NotADirectoryError):
            continue
        shape = Path(name).name
        found = [f for f in there if fnmatch.fnmatchcase(f.name.removesuffix(".gz"), shape)]
        if len(found) > 1:
            several = ", ".join(file.name for file in found)
            raise ConfigError(f"{who}: {place} has {several}: name the file, {who}@{found[0]}")
        if found:
            return found[0]
    raise MissingInput(f"{who}: {folder} has no {' or '.join(names)} (nor with .gz)")


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, line) of a text file or its .gz, from 1, without line ends.

    Raises:
      DataError: bytes of another encoding, or a damaged .gz.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.decode(encoding).removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.start + 1} of the line is not {encoding}"
        ) from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number}: damaged gzip ({error})") from None


def table(
    path: Path, *, header: Sequence[str] | None = None, skip_short: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, {column: field}) of the rows of a TSV file without quoting.

    Args:
      header: names of the columns of a file that does not begin with them.
      skip_short: leave rows out that have too few fields, and say how many.

    Raises:
      DataError: a row with another number of fields than the header.
    """
    columns = list(header) if header else None
    skipped = blank = 0
    for number, line in lines(path):
        fields = line.split("\t")
        if columns is None:
            columns = fields
        elif line == "":
            blank += 1
        elif len(fields) == len(columns):
            yield f"{path}:{number}", dict(zip(columns, fields, strict=True))
        elif skip_short and len(fields) < len(columns):
            skipped += 1
        else:
            expected = f"{len(columns)} ({', '.join(columns)})"
            raise DataError(f"{path}:{number}: {len(fields)} columns, expected {expected}")
    said(path, skipped, "rows with too few columns")
    said(path, blank, "empty lines")


def commas(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, {column: field}) of the rows of a CSV file with a header.

    Raises:
      DataError: a row with another number of fields than the header, or no CSV.
    """
    rows = csv.reader((f"{line}\n" for _, line in lines(path)), strict=True)
    try:
        columns = next(rows, [])
        for row in rows:
            if len(row) != len(columns):
                raise DataError(
                    f"{path}:{rows.line_num}: {len(row)} columns, expected {len(columns)}"
                )
            yield f"{path}:{rows.line_num}", dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: {error}") from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of the lines of a JSONL file.

    Raises:
      DataError: a line that is not a JSON object.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        value = _parsed(line, place)
        if not isinstance(value, dict):
            raise DataError(f"{place}: a JSON {type(value).__name__}, expected an object")
        yield place, value


def json_file(path: Path):
    """What a JSON file holds."""
    return _parsed("\n".join(line for _, line in lines(path)), str(path))


def _parsed(text: str, place: str):
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escape may be half of a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half a surrogate pair, {error.object[error.start]!r}") from None
    except json.JSONDecodeError as error:
        where = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise DataError(f"{where}: not JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise DataError(f"{place}: JSON nested too deep") from None


def field(record: Mapping[str, Any], name: str, place: str, kind: type | tuple = str):
    """`record[name]`, which must be there and of a kind.

    Raises:
      DataError: it is not.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{place}: {record!r} where an object with {name!r} was expected")
    if name not in record:
        raise DataError(f"{place}: no {name!r}; there are: {', '.join(map(str, record))}")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
        raise DataError(f"{place}: {name!r} is {value!r}, expected {' or '.join(names)}")
    return value


def class_index(labels: Sequence[str], label: str, place: str) -> int:
    """Raises DataError: no such label."""
    try:
        return labels.index(label)
    except ValueError:
        known = ", ".join(labels)
        raise DataError(f"{place}: label {label!r} is none of {known}") from None


def number(text: str, place: str, low: float, high: float) -> float:
    """Raises DataError: not a number from low to high."""
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{place}: {text!r} is not a number") from None
    if not low <= value <= high:
        raise DataError(f"{place}: {text} is not from {low:g} to {high:g}")
    return value


def hashed_order(examples: Sequence[Example]) -> list[Example]:
    """Examples in the order of a hash of their texts: of a set whose publisher has no validation
    split and may have sorted it, so that any slice has every class, wherever it is taken; two
    copies of a text stay together.
    """
    return sorted(examples, key=lambda e: (zlib.crc32(e["text"].encode()), e["text"], e["id"]))


def said(path: Path | str, count: int, what: str) -> None:
    """Say what was left out."""
    if count:
        log.warning("%s: %d %s are left out", path, count, what)


def check_span(context: str, answer: Mapping[str, Any], place: str) -> None:
    """Raises DataError: the context has something else where the answer is said to be."""
    text, start = answer["text"], answer["start"]
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise DataError(f"{place}: the answer {text!r} is not at {start}, where {there!r} is")
