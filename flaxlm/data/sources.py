"""Documents out of text, JSONL, parquet, TFDS and the embedded corpus (`formats` reads the files).

What a document is: `text:` one file; `lines:` one line; `jsonl:`, `parquet:`, `tfds:` one record's
text field; `task:` one text of an example. No document is longer than `LONGEST` characters: longer
ones are cut at the paragraph, line, sentence or word border before the limit, so a book or a 40 MB
line becomes many documents.
Nothing is lost in silence: `Counts` says what happened.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from flaxlm.data import english, formats
from flaxlm.data.files import key
from flaxlm.data.formats import Counts, Decoder
from flaxlm.data.spec import Source
from flaxlm.errors import ConfigError, DataError, MissingInput, nearest

LONGEST = 1 << 16  # characters of a document: about 16k tokens
POLICIES = ("error", "replace", "skip")


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
      ConfigError: unknown kind of source, unknown split or unknown `on_decode_error`.
      MissingInput: no file matches, or the TFDS data set is not prepared on this machine.
      DataError: bytes that are not UTF-8 (unless the source says otherwise), JSON that is none, a
        missing field: each with file:line(:byte); or no document at all, with the counts.
    """
    counts = Counts() if counts is None else counts
    for stream in _open(source, counts):
        # Text files stream in parts; for the others a stream is one document and one part.
        rest, parts, nul = "", 0, False
        for part in stream:
            nul |= "\0" in part
            rest += part.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
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
    if not counts.documents:
        raise DataError(f"{source.uri}: 0 documents after filtering ({counts.dropped})")


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
    elif kind == "task":
        from flaxlm.data import examples

        facts = key(list(examples.texts(source)))
    else:
        facts = [
            [os.path.abspath(p), os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in _files(source)
        ]
    read = [source.uri, source.split, source.field, _policy(source), LONGEST]
    return key([2, *read, facts])  # 2: version of this reader


def _kind(source: Source) -> tuple[str, str]:
    kind, colon, name = source.uri.partition(":")
    kinds = ("embedded", "tfds", "text", "lines", "jsonl", "parquet", "task")
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


def _policy(source: Source) -> str:
    if source.on_decode_error not in POLICIES:
        raise ConfigError(
            f"{source.uri}: on_decode_error={source.on_decode_error!r}; "
            f"{nearest(source.on_decode_error, POLICIES)}"
        )
    return source.on_decode_error


def _open(source: Source, counts: Counts) -> Iterator[Iterator[str]]:
    """One iterator of text parts per document."""
    kind, name = _kind(source)
    decode = Decoder(_policy(source), counts)
    if kind == "embedded":
        return ([text] for text in english.documents())
    if kind == "tfds":
        from flaxlm.data import tfds_source

        return ([text] for text in tfds_source.texts(name, source.split, source.field, decode))
    if kind == "task":
        from flaxlm.data import examples

        return ([text] for text in examples.texts(source))
    files = _files(source)
    if kind == "text":
        return (parts for path in files for parts in formats.text_file(path, decode))
    read = {"lines": formats.lines, "jsonl": formats.jsonl, "parquet": formats.parquet}[kind]
    return ([text] for path in files for text in read(path, source.field, decode))


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
