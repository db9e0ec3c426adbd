"""Documents out of text, JSONL, parquet, TFDS and the embedded corpus: streamed and strict.

What a document is: `text:` one file; `lines:` one line; `jsonl:`, `parquet:`, `tfds:` one record's
text field. No document is longer than `LONGEST` characters: longer ones are cut at the paragraph,
line, sentence or word border before the limit, so a book or a 40 MB line becomes many documents.
Nothing is lost in silence: `Counts` says what happened.
"""

import glob
import io
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flaxlm.data import english
from flaxlm.data.files import key
from flaxlm.data.spec import Source
from flaxlm.errors import ConfigError, DataError, MissingInput, nearest

LONGEST = 1 << 16  # characters of a document: about 16k tokens
_LONGEST_LINE = 1 << 28  # bytes of one JSON record or one `lines:` document
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Counts:
    """What became of a source's documents.

    Attributes:
      read: documents found, before any was cut.
      empty: of these, without text (nothing, or only whitespace).
      cut: of these, longer than `LONGEST` characters and therefore cut into several.
      nul: of these, with NUL characters, which were removed.
      documents: what came out.
    """

    read: int = 0
    empty: int = 0
    cut: int = 0
    nul: int = 0
    documents: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in asdict(self).items())


def documents(
    source: Source, *, counts: Counts | None = None, longest: int = LONGEST
) -> Iterator[str]:
    """The documents of `source`, in an order that its files fix: never empty, never longer than
    `longest` characters.

    Line ends become "\\n"; a byte order mark and NUL characters are removed. Blank lines of JSONL
    are no documents.

    Args:
      source: where to read; `weight` plays no part here.
      counts: filled while the iterator runs.
      longest: where to cut, in characters.

    Raises:
      ConfigError: unknown kind of source, or unknown split.
      MissingInput: no file matches, or the TFDS data set is not prepared on this machine.
      DataError: bytes that are not UTF-8, JSON that is none, a missing field: each with
        file:line(:byte).
    """
    counts = Counts() if counts is None else counts
    for stream in _open(source):
        # Text files stream in parts; for the others a stream is one document and one part.
        rest, parts, nul = "", 0, False
        for part in stream:
            nul |= "\0" in part
            rest += part.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
            start = 0
            while len(rest) - start > longest:
                stop = _border(rest, start, longest)
                if piece := rest[start:stop].strip():
                    parts += 1
                    yield piece
                start = stop
            rest = rest[start:]
        if piece := rest.strip():
            parts += 1
            yield piece
        counts.read += 1
        counts.empty += parts == 0
        counts.cut += parts > 1
        counts.nul += nul
        counts.documents += parts


def fingerprint(source: Source) -> str:
    """Changes whenever the documents of `source` may: names, sizes and times of its files, not
    their contents.

    Raises:
      ConfigError, MissingInput: as `documents`.
    """
    kind, name = _kind(source)
    if kind == "embedded":
        facts = english.fingerprint()
    elif kind == "tfds":
        from flaxlm.data import tfds_source

        facts = tfds_source.fingerprint(name)
    else:
        facts = [
            [os.path.abspath(p), os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in _files(source)
        ]
    return key(
        [1, source.uri, source.split, source.field, LONGEST, facts]
    )  # 1: version of this reader


def _kind(source: Source) -> tuple[str, str]:
    kind, colon, name = source.uri.partition(":")
    kinds = ("embedded", "tfds", "text", "lines", "jsonl", "parquet")
    if kind == "corpus" and colon:
        raise ConfigError(
            f"{source.uri} is prepared already: it is trained on, not prepared or tokenised again"
        )
    if not colon or kind not in kinds:
        raise ConfigError(
            f"source {source.uri!r} has no known kind before the colon; {nearest(kind, kinds)}"
        )
    if kind == "embedded" and name != "english":
        raise ConfigError(f"{source.uri!r}: the embedded corpus is embedded:english")
    return kind, name


def _open(source: Source) -> Iterator[Iterator[str]]:
    """One iterator of text parts per document."""
    kind, name = _kind(source)
    if kind == "embedded":
        return ([text] for text in english.documents())
    if kind == "tfds":
        from flaxlm.data import tfds_source

        return ([text] for text in tfds_source.texts(name, source.split, source.field))
    files = _files(source)
    if kind == "text":
        return (_text(path) for path in files)
    read = {"lines": _lines, "jsonl": _jsonl, "parquet": _parquet}[kind]
    return ([text] for path in files for text in read(path, source.field))


def _files(source: Source) -> list[str]:
    kind, pattern = _kind(source)
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        raise MissingInput(
            f"{source.uri} is a folder; write {kind}:{pattern.rstrip('/')}/* for the files in it"
        )
    files = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    if not files:
        where = "" if os.path.isabs(pattern) else f" (looked from {Path.cwd()})"
        raise MissingInput(f"no file matches {source.uri}{where}")
    return files


def _border(text: str, start: int, longest: int) -> int:
    """Where in the second half of `longest` characters after `start` a cut harms least."""
    stop = start + longest
    for mark in ("\n\n", "\n", ". ", " "):
        at = text.rfind(mark, start + longest // 2, stop)
        if at >= 0:
            return at + len(mark)
    return stop


def _segments(path: str, limit: int) -> Iterator[tuple[int, int, str]]:
    """(line, byte, text): the lines of a file, those longer than `limit` bytes in several parts.

    `line` and `byte` count from 1 and say where the part begins. gzip and zstd by the file's last
    suffix.
    """
    import pyarrow

    line, byte, rest = 1, 1, b""
    try:
        with io.BufferedReader(pyarrow.input_stream(path), 1 << 18) as file:
            while block := file.readline(limit):
                block = rest + block
                rest = b""
                if line == 1 and byte == 1 and block.startswith(b"\xef\xbb\xbf"):
                    block, byte = block[3:], 4
                if block.endswith(b"\r") and file.peek(1):  # its "\n" is yet to come
                    block, rest = block[:-1], b"\r"
                try:
                    text = block.decode()
                except UnicodeDecodeError as error:
                    # A character cut by the limit is completed by the next part.
                    if (
                        error.reason == "unexpected end of data"
                        and not block.endswith(b"\n")
                        and file.peek(1)
                    ):
                        text, rest = block[: error.start].decode(), block[error.start :]
                    else:
                        raise _not_utf8(
                            f"{path}:{line}:{byte + error.start}", block[error.start]
                        ) from None
                yield line, byte, text
                byte += len(block) - len(rest)
                if block.endswith(b"\n"):
                    line, byte = line + 1, 1
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else str(error)
        raise DataError(
            f"{path}: cannot be read to its end, after line {line}: {reason}"
        ) from error


def _not_utf8(where: str, byte: int) -> DataError:
    hint = " (UTF-16?)" if byte in (0xFE, 0xFF) else ""
    return DataError(
        f"{where}: byte 0x{byte:02x} is not UTF-8{hint}; convert the file with iconv -t UTF-8"
    )


def _text(path: str) -> Iterator[str]:
    parts, size = [], 0
    for _, _, text in _segments(path, 1 << 16):
        parts.append(text)
        size += len(text)
        if size > LONGEST:
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def _whole_lines(path: str) -> Iterator[tuple[int, str]]:
    for line, byte, text in _segments(path, _LONGEST_LINE):
        if byte > 4:  # not the line's beginning, with or without a byte order mark
            raise DataError(
                f"{path}:{line}: longer than {_LONGEST_LINE} bytes; read long texts with text:"
            )
        yield line, text


def _lines(path: str, field: str) -> Iterator[str]:
    del field  # a line has none
    return (text for _, text in _whole_lines(path))


def _jsonl(path: str, field: str) -> Iterator[str]:
    import json

    for line, text in _whole_lines(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = (
                f"{error.msg} at character {error.pos + 1}"
                if isinstance(error, json.JSONDecodeError)
                else error
            )
            raise DataError(f"{path}:{line}: not JSON: {reason}") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path}:{line}: a JSON {type(record).__name__}, not an object with field {field!r}"
            )
        if field not in record:
            raise DataError(
                f"{path}:{line}: no field {field!r}; there are: {', '.join(record) or 'none'}"
            )
        value = record[field]
        if value is None:
            value = ""
        if not isinstance(value, str):
            kind = type(value).__name__
            raise DataError(f"{path}:{line}: field {field!r} holds {kind}, not text")
        # Only an escape can smuggle in half a character: plain lines skip the search.
        if "\\u" in text and (found := _SURROGATE.search(value)):
            code = f"\\u{ord(found[0]):04x}"
            raise DataError(
                f"{path}:{line}: field {field!r} has the lone surrogate {code}, half of a character"
            )
        yield value


def _parquet(path: str, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise DataError(f"{path}: no column {field!r}; there are: {', '.join(names)}")
            kind = file.schema_arrow.field(field).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise DataError(f"{path}: column {field!r} holds {kind}, not strings")
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    try:
                        yield value.as_py() or ""
                    except UnicodeDecodeError as error:
                        where = f"{path}:{row}:{error.start + 1}"
                        raise _not_utf8(where, error.object[error.start]) from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: not a readable parquet file: {str(error).splitlines()[0]}"
        ) from error
