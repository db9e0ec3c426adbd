"""Files of text, JSON lines and parquet as texts: streamed, strict, every fault with its place.

Bytes that are not UTF-8, and halves of surrogate pairs, stop the reading at file:line:byte unless
the source says `on_decode_error="replace"` or "skip"; both are counted.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from flaxlm.errors import DataError, UserError

LONGEST_LINE = 1 << 28  # bytes of one JSON record or one `lines:` document
_PART = 1 << 16  # bytes of a text file that are looked at together
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Counts:
    """What became of a source's documents.

    Attributes:
      read: documents found, before any was cut.
      empty: of these, without text (nothing, or only whitespace).
      skipped: of these, left out because they were not UTF-8.
      cut: of these, longer than a document may be and therefore cut into several.
      nul: of these, with NUL characters, which were removed.
      replaced: characters U+FFFD put in the place of what was not UTF-8.
      documents: what came out.
    """

    read: int = 0
    empty: int = 0
    skipped: int = 0
    cut: int = 0
    nul: int = 0
    replaced: int = 0
    documents: int = 0

    @property
    def dropped(self) -> str:
        """What became of documents that did not come out, for people."""
        left = {name: getattr(self, name) for name in ("empty", "skipped")}
        reasons = ", ".join(f"{name} {count:,}" for name, count in left.items() if count)
        return f"in {self.read:,}" + (f", dropped: {reasons}" if reasons else "")

    def __str__(self) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in asdict(self).items())


class Decoder:
    """Bytes to text; what is not UTF-8 raises, is replaced or makes the document be left out.

    Args:
      policy: "error", "replace" or "skip" (`Source.on_decode_error`).
      counts: of the source; `replaced`, `skipped` and, with it, `read` grow here.
    """

    def __init__(self, policy: str, counts: Counts):
        self.policy, self._counts = policy, counts

    def __call__(self, content: bytes, place: str, byte: int = 1) -> str | None:
        """The text of a document or a part of one, None if it is to be left out.

        Args:
          content: whole characters.
          place: file:line or alike, for the error.
          byte: where in that line `content` begins, from 1.

        Raises:
          DataError: bytes that are not UTF-8, under "error".
        """
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            if self.policy == "error":
                at, value = byte + error.start, content[error.start]
                hint = " (UTF-16?)" if value in (0xFE, 0xFF) else ""
                raise DataError(
                    f"{place}:{at}: byte 0x{value:02x} is not UTF-8{hint}; convert the file with "
                    "iconv -t UTF-8, or give the source on_decode_error=replace or skip"
                ) from None
            if self.policy == "skip":
                return self.skip()
            text = content.decode(errors="replace")
            self._counts.replaced += text.count("�") - content.count("�".encode())
            return text

    def whole(self, text: str, place: str) -> str | None:
        """`text` without halves of characters, which JSON's escapes can spell; else as above."""
        found = _SURROGATE.search(text)
        if not found:
            return text
        if self.policy == "error":
            raise DataError(
                f"{place} has the lone surrogate \\u{ord(found[0]):04x}, half of a character; "
                "mend it, or give the source on_decode_error=replace or skip"
            )
        if self.policy == "skip":
            return self.skip()
        text, count = _SURROGATE.subn("�", text)
        self._counts.replaced += count
        return text

    def skip(self) -> None:
        """Count a document that is left out."""
        self._counts.read += 1
        self._counts.skipped += 1


def text_file(path: str, decode: Decoder) -> Iterator[Iterator[str]]:
    """A file as one document, in parts; none if it is to be left out."""
    if decode.policy == "skip" and not all(_clean(block) for *_, block in _segments(path, _PART)):
        decode.skip()
        return
    yield _parts(path, decode)


def _clean(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parts(path: str, decode: Decoder) -> Iterator[str]:
    parts, size = [], 0
    for line, byte, block in _segments(path, _PART):
        parts.append(decode(block, f"{path}:{line}", byte))
        size += len(block)
        if size > _PART:
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def lines(path: str, field: str, decode: Decoder) -> Iterator[str]:
    """Every line of a file as a document."""
    del field  # a line has none
    for line, byte, block in _whole_lines(path):
        if (text := decode(block, f"{path}:{line}", byte)) is not None:
            yield text


def jsonl(path: str, field: str, decode: Decoder) -> Iterator[str]:
    """The field of every record of a file with a JSON object per line."""
    for line, byte, block in _whole_lines(path):
        place = f"{path}:{line}"
        text = decode(block, place, byte)
        if text is None or not text.strip():
            continue
        value = _field(text, field, place)
        # Only an escape can smuggle in half a character: plain lines skip the search.
        if "\\u" in text:
            value = decode.whole(value, f"{place}: field {field!r}")
        if value is not None:
            yield value


def _field(text: str, field: str, place: str) -> str:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = (
            f"{error.msg} at character {error.pos + 1}"
            if isinstance(error, json.JSONDecodeError)
            else error
        )
        raise DataError(f"{place}: not JSON: {reason}") from None
    if not isinstance(record, dict):
        raise DataError(
            f"{place}: a JSON {type(record).__name__}, not an object with field {field!r}"
        )
    if field not in record:
        raise DataError(f"{place}: no field {field!r}; there are: {_listed(record)}")
    value = record[field]
    if not isinstance(value, str | None):
        raise DataError(f"{place}: field {field!r} holds {type(value).__name__}, not text")
    return value or ""


def _listed(names) -> str:
    """Names that a file brings, on one line whatever they are."""
    return ", ".join(map(repr, names))[:200] or "none"


def parquet(path: str, field: str, decode: Decoder) -> Iterator[str]:
    """A column of a parquet file, row by row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise DataError(f"{path}: no column {field!r}; there are: {_listed(names)}")
            kind = file.schema_arrow.field(field).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise DataError(f"{path}: column {field!r} holds {kind}, not strings")
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        text = decode(error.object, f"{path}:{row}")
                        if text is None:
                            continue
                    yield text or ""
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        pyarrow.ArrowException,
    ) as error:  # names that are no text: ValueError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable parquet file: {reason}") from error


def _whole_lines(path: str) -> Iterator[tuple[int, int, bytes]]:
    for line, byte, block in _segments(path, LONGEST_LINE):
        if byte > 4:  # not the line's beginning, with or without a byte order mark
            raise DataError(
                f"{path}:{line}: longer than {LONGEST_LINE} bytes; read long texts with text:"
            )
        yield line, byte, block


def _segments(path: str, limit: int) -> Iterator[tuple[int, int, bytes]]:
    """(line, byte, content): the lines of a file, those longer than `limit` bytes in several parts,
    which tear neither a character nor a line end.

    `line` and `byte` count from 1 and say where the part begins. gzip and zstd by the file's last
    suffix.
    """
    import pyarrow

    line, byte, rest = 1, 1, b""
    try:
        with io.BufferedReader(pyarrow.input_stream(path), 1 << 18) as file:
            while block := file.readline(limit):
                block, rest = rest + block, b""
                if line == 1 and byte == 1 and block.startswith(b"\xef\xbb\xbf"):
                    block, byte = block[3:], 4
                if (torn := _torn(block)) and file.peek(1):
                    block, rest = block[:-torn], block[-torn:]
                if block:  # there is more than a byte order mark
                    yield line, byte, block
                byte += len(block)
                if block.endswith(b"\n"):
                    line, byte = line + 1, 1
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else str(error)
        raise DataError(
            f"{path}: cannot be read to its end, after line {line}: {reason}"
        ) from error


def _torn(block: bytes) -> int:
    """How many bytes at the end begin a character or a line end that the next part completes."""
    if block.endswith(b"\r"):  # its "\n" may be yet to come
        return 1
    for back, value in enumerate(block[:-4:-1], 1):
        if value >= 0xC0:  # the first byte says how many there are
            return back if back < 2 + (value >= 0xE0) + (value >= 0xF0) else 0
        if value < 0x80:
            return 0
    return 0
