"""Fuzzing of what text is read from: any bytes give the documents that a straightforward reading of
them gives, or one line that names the file, and nothing hangs.
"""

import gzip
import io
import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxlm.data import formats
from flaxlm.data.formats import Counts
from flaxlm.data.sources import LONGEST, documents
from flaxlm.data.spec import Source
from tests import fuzz

# Bytes that mean something to some reader, and any others.
TELLING = [
    b"\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xe9\x80", b"\xf0\x9f\x98", b"\x80", b"\xed\xa0\x80",
    b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf8", b"\x1a", b"\x1f\x8b",
    "é".encode(), "한국어".encode(), "😀".encode(), "\u3000".encode(), "\ufffd".encode(),
    b"A word. ", b"Another one. ", b"\n\n", b"{}", b'"', b"\\",
]  # fmt: skip
CONTENT = st.lists(st.sampled_from(TELLING) | st.binary(max_size=4), max_size=30).map(b"".join)
POLICIES = st.sampled_from(["error", "error", "replace", "skip"])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


def read(path, kind, policy="error", **options):
    """(documents, counts, the line of a refusal or None)."""
    counts, found = Counts(), []
    with fuzz.refused() as errors:
        source = Source(f"{kind}:{path}", on_decode_error=policy)
        found = list(documents(source, counts=counts, **options))
        assert counts.documents == len(found)
    if errors:
        assert errors[0].code == 65 and str(path) in str(errors[0])
        return None, counts, str(errors[0])
    assert all(text == text.strip() != "" and not {"\0", "\r"} & {*text} for text in found)
    return found, counts, None


def place_of(content: bytes, start: int) -> str:
    """line:byte of a place in a file, both from 1."""
    before = content[:start]
    return f"{before.count(10) + 1}:{start - before.rfind(10)}"


def cleaned(text: str) -> str:
    return "\n".join(text.replace("\r\n", "\n").split("\r")).replace("\0", "").strip()


def decoded(content: bytes, policy: str) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode(errors="replace") if policy == "replace" else None


@fuzz.inputs(400)
@given(CONTENT, POLICIES, st.sampled_from([1, 2, 3, 5, 8, 1 << 16]), st.sampled_from([8, LONGEST]))
def test_any_file_is_its_text_or_refused(file, content, policy, part, longest):
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_PART", part)  # where the reader cuts must not matter
        found, counts, refusal = read(file, "text", policy, longest=longest)
    body = content.removeprefix(b"\xef\xbb\xbf")
    text = decoded(body, policy)
    if text is None and policy == "error":
        with pytest.raises(UnicodeDecodeError) as error:
            body.decode()
        start = error.value.start + len(content) - len(body)
        assert refusal.startswith(f"{file}:{place_of(content, start)}: byte 0x{content[start]:02x}")
        return
    expected = "" if text is None else cleaned(text)
    assert counts.read == 1 and counts.skipped == (text is None)
    assert counts.empty == (text is not None and not expected)
    if not expected:
        assert "0 documents after filtering (in 1, dropped: " in refusal
        return
    assert counts.nul == ("\0" in text)
    assert counts.replaced == text.count("\ufffd") - body.count("\ufffd".encode())
    assert max(map(len, found)) <= longest
    if longest == LONGEST:
        assert found == [expected]
    assert "".join("".join(found).split()) == "".join(expected.split())


@fuzz.inputs(400)
@given(CONTENT, POLICIES)
def test_any_lines_are_read_or_refused(file, content, policy):
    file.write_bytes(content)
    found, counts, refusal = read(file, "lines", policy)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = lines[:-1] if not lines[-1] else lines
    texts = [decoded(line, policy) for line in lines]
    if policy == "error" and None in texts:
        number = texts.index(None) + 1
        assert refusal.startswith(f"{file}:{number}:") and "is not UTF-8" in refusal
        return
    expected = [text for line in texts if line is not None and (text := cleaned(line))]
    assert (found or []) == expected and (refusal is None) == bool(expected)
    assert (counts.read, counts.skipped) == (len(lines), texts.count(None))


VALUES = st.one_of(
    st.text(max_size=12),
    st.text(st.sampled_from("a\0\r\n \ud800\udc00😀\ufeff"), max_size=6),
    fuzz.JSON,
)
RECORDS = st.one_of(
    st.dictionaries(st.sampled_from(["text", "text", "body"]), VALUES, max_size=2),
    VALUES,
)
LINES = st.one_of(
    RECORDS.map(lambda record: json.dumps(record).encode()),
    RECORDS.map(
        lambda record: json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")
    ),
    st.sampled_from([
        b"", b" ", b"{", b'{"text": "a"', b'{"text": "a"}}', b'{"text": "a"} x', b"[" * 50_000,
        b'{"text": "\\ud83d\\ude00"}', b'{"text": "\\ud800"}', b'{"text": "a", "text": "b"}',
        b'{"text": NaN}', b'{"text": 1e999}', b'{"text": ' + b"9" * 5000 + b"}", b'{"text": "\t"}',
        b'\xef\xbb\xbf{"text": "c"}', b'{"te\\u0078t": "d"}', b"{'text': 'a'}", b'{"text": "\x85"}',
    ]),
)  # fmt: skip


def jsonl_reading(content: bytes, policy: str) -> tuple[list[str], int | None]:
    """(documents until the first bad line, its number or None)."""
    found = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode(errors="replace" if policy == "replace" else "strict")
            if not text.strip():
                continue
            record = json.loads(text)
            value = record["text"] if isinstance(record, dict) else None
            if not (isinstance(record, dict) and (value is None or isinstance(value, str))):
                return found, number
            value = value or ""
            value = value.encode("utf-8", "strict" if policy != "replace" else "replace").decode()
        except UnicodeError:
            if policy == "skip":
                continue
            return found, number
        except (ValueError, KeyError, RecursionError):
            return found, number
        if cleaned(value):
            found.append(cleaned(value))
    return found, None


@fuzz.inputs(500)
@given(st.lists(LINES, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), POLICIES, st.data())
def test_any_jsonl_is_read_or_refused(file, lines, end, policy, data):
    content = end.join(lines)
    if content and data.draw(st.integers(0, 3)) == 0:
        at = data.draw(st.integers(0, len(content) - 1))
        content = content[:at] + data.draw(st.binary(max_size=2)) + content[at + 1 :]
    file.write_bytes(content)
    found, _, refusal = read(file, "jsonl", policy)
    expected, bad = jsonl_reading(content, policy)
    if policy == "replace":  # how many U+FFFD stand for half of a character is not the matter here
        expected = [text.replace("?", "\ufffd") for text in expected]
        found = found and [text.replace("?", "\ufffd") for text in found]
    if bad is not None:
        assert refusal.startswith(f"{file}:{bad}:"), (refusal, bad)
    else:
        assert (found or []) == expected and (refusal is None) == bool(expected)


@fuzz.inputs(300)
@given(st.lists(st.text(st.sampled_from("ab é\n"), min_size=1, max_size=9), max_size=40), st.data())
def test_any_damaged_gzip_is_read_or_refused(file, texts, data):
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    packed = bytearray(gzip.compress(content, mtime=0))
    for _ in range(data.draw(st.integers(0, 2))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    packed = packed[: data.draw(st.sampled_from([len(packed)] * 3 + [*range(0, len(packed), 7)]))]
    packed += data.draw(st.sampled_from([b"", b"", b"\0\0", b"more", gzip.compress(b"", mtime=0)]))
    path = file.with_suffix(".gz")
    path.write_bytes(packed)
    found, _, refusal = read(path, "jsonl")
    try:
        whole = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        # Bytes after the archive's end are no part of it; whoever accepts them has read it all.
        assert refusal or jsonl_reading(content, "error") == (found, None)
        return
    expected, bad = jsonl_reading(whole, "error")
    assert (found or []) == expected if bad is None and not (refusal and expected) else refusal


@fuzz.inputs(300)
@given(
    st.lists(st.none() | st.text(max_size=9), max_size=90),
    st.sampled_from(["none", "snappy", "zstd"]),
    st.booleans(),
    st.data(),
)
def test_any_damaged_parquet_is_read_or_refused(file, texts, compression, dictionary, data):
    sink = io.BytesIO()
    table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
    pq.write_table(
        table, sink, compression=compression, use_dictionary=dictionary, row_group_size=40,
        write_page_checksum=True,
    )  # fmt: skip
    content = bytearray(sink.getvalue())
    damage = data.draw(st.sampled_from(["none", "flip", "flip", "flip", "cut", "bytes"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if damage == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        del content[at:]
    elif damage == "bytes":
        content[at : at + 4] = data.draw(st.binary(min_size=1, max_size=6))
    file.write_bytes(content)
    found, _, refusal = read(file, "parquet")
    expected = [text for raw in texts if raw and (text := cleaned(raw))]
    if damage == "none":
        assert (found or []) == expected and (refusal is None) == bool(expected)
    elif found is not None and found != expected:
        # A footer has no checksum: it may say that there are fewer rows, or another encoding. Then
        # this is what any reader reads.
        theirs = pq.read_table(io.BytesIO(content), columns=["text"]).column("text").to_pylist()
        expected = [text for raw in theirs if raw and (text := cleaned(raw))]
        assert found == expected


def test_numbers_of_parquet_are_no_text(file):
    pq.write_table(pa.table({"text": np.arange(3)}), file)
    assert "holds int64, not strings" in read(file, "parquet")[2]
