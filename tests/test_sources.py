"""Documents out of every kind of source, and every way a file can be wrong."""

import gzip
import json
import os
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from flaxlm.data import english, formats
from flaxlm.data.formats import Counts
from flaxlm.data.sources import LONGEST, documents, fingerprint
from flaxlm.data.spec import Source
from flaxlm.errors import ConfigError, DataError, MissingInput


def read(uri, **options):
    counts = Counts()
    found = list(documents(Source(uri, **options), counts=counts))
    assert counts.documents == len(found)
    return found, counts


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zst(content):
    with pa.BufferOutputStream() as sink:
        with pa.CompressedOutputStream(sink, "zstd") as file:
            file.write(content)
        return sink.getvalue().to_pybytes()


def test_a_text_file_is_a_document_in_the_order_of_names(tmp_path):
    put(tmp_path / "b.txt", "second\n")
    put(tmp_path / "a.txt", "one\n\ntwo\n")
    assert read(f"text:{tmp_path}/*.txt")[0] == ["one\n\ntwo", "second"]


def test_a_line_is_a_document_and_empty_lines_are_counted(tmp_path):
    put(tmp_path / "a.txt", "one\n\n  \ntwo\nlast")
    found, counts = read(f"lines:{tmp_path}/a.txt")
    assert found == ["one", "two", "last"]
    assert (counts.read, counts.empty, counts.documents) == (5, 2, 3)


def test_line_ends_byte_order_mark_and_nul(tmp_path):
    put(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthr\x00ee\r\n")
    put(tmp_path / "b.txt", b"")
    put(tmp_path / "c.txt", b" \x00 \r\n")
    found, counts = read(f"text:{tmp_path}/*.txt")
    assert found == ["one\ntwo\nthree"]
    assert (counts.read, counts.empty, counts.nul) == (3, 2, 2)


def test_a_line_end_across_the_parts_of_a_long_line_is_one(tmp_path):
    for more in range(13, 19):  # 65520 bytes and some: the part ends around the line end
        text = "한" * 21840 + "x" * more
        put(tmp_path / "a.txt", text + "\r\ny\r\n")
        assert read(f"text:{tmp_path}/a.txt")[0] == [text + "\ny"], more


@pytest.mark.parametrize("packed", [gzip.compress, zst])
def test_compressed_files_read_the_same(tmp_path, packed):
    suffix = "gz" if packed is gzip.compress else "zst"
    content = "\n".join(f"line {n} 한국어" for n in range(3000)).encode()
    put(tmp_path / f"a.txt.{suffix}", packed(content) + packed(b"\nsecond stream"))
    found, _ = read(f"lines:{tmp_path}/a.txt.{suffix}")
    assert found[:2] == ["line 0 한국어", "line 1 한국어"]
    assert found[-1] == "second stream" and len(found) == 3001
    put(tmp_path / f"cut.txt.{suffix}", packed(content)[:-7])
    with pytest.raises(DataError, match=rf"cut\.txt\.{suffix}: cannot be read to its end"):
        read(f"lines:{tmp_path}/cut.txt.{suffix}")
    put(tmp_path / f"plain.txt.{suffix}", b"not compressed")
    with pytest.raises(DataError, match=rf"plain\.txt\.{suffix}"):
        read(f"lines:{tmp_path}/plain.txt.{suffix}")


@pytest.mark.parametrize("kind", ["text", "lines", "jsonl"])
@pytest.mark.parametrize(
    "content, where",
    [
        (b"{}\nab\xffcd\n", "2:3: byte 0xff"),
        (b"{}\n\xc3", "2:1: byte 0xc3"),  # a character that the file's end cuts
        (b"\xef\xbb\xbf\xed\xa0\x80", "1:4: byte 0xed"),  # a surrogate in UTF-8
        (b"\xff\xfe{\x00", "1:1: byte 0xff is not UTF-8 (UTF-16?)"),
    ],
)
def test_bytes_that_are_not_utf8_are_named(tmp_path, kind, content, where):
    path = put(tmp_path / "bad", content.replace(b"{}", b'{"text": ""}'))
    with pytest.raises(DataError) as caught:
        read(f"{kind}:{path}")
    assert str(caught.value).startswith(f"{path}:{where}")
    assert caught.value.code == 65


def test_what_fuzzing_found(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_PART", 1)
    path = put(
        tmp_path / "a", b"x\r\0\ny"
    )  # where a part ended decided what a NUL in a line end was
    assert read(f"text:{path}")[0] == ["x\n\ny"]
    put(path, b"\xef\xbb\xbf")  # a byte order mark alone was a line
    with pytest.raises(DataError, match=r"0 documents after filtering \(in 0\)"):
        read(f"lines:{path}")
    pq.write_table(pa.table({"text": ["one"], "other": ["two"]}), path)
    put(path, path.read_bytes().replace(b"other", b"\xffther"))  # was a UnicodeDecodeError
    with pytest.raises(DataError, match=rf"{path}: not a readable parquet file: .*0xff"):
        read(f"parquet:{path}")


def test_a_character_across_the_parts_of_a_long_line_is_whole(tmp_path):
    text = "x" + "한" * 60_000  # 180 kB in one line, read in parts of 64 KiB
    put(tmp_path / "a.txt", text)
    found, counts = read(f"text:{tmp_path}/a.txt")
    assert "".join(found) == text and counts.read == 1
    put(tmp_path / "b.txt", text.encode() + b"\xff")
    with pytest.raises(DataError, match=f":1:{len(text.encode()) + 1}: byte 0xff"):
        read(f"text:{tmp_path}/b.txt")


@pytest.mark.parametrize("kind", ["text", "lines", "jsonl"])
def test_a_huge_line_is_cut_quickly(tmp_path, kind):
    text = "many words. " * 700_000  # 8.4 MB: copying the rest at every cut would take a minute
    content = json.dumps({"text": text}) if kind == "jsonl" else text
    path = put(tmp_path / "a", content)
    begun = time.process_time()
    found, counts = read(f"{kind}:{path}")
    assert time.process_time() - begun < 3
    assert max(map(len, found)) <= LONGEST
    assert " ".join(found) == text.strip()
    assert (counts.read, counts.cut, counts.documents) == (1, 1, len(found))


def test_cuts_prefer_paragraphs_then_lines_then_sentences_then_words():
    def cut(text):
        from flaxlm.data.sources import _border

        return text[: _border(text, 0, 20)]

    assert cut("aaaa aaaa b. c\n\nd. e f g h") == "aaaa aaaa b. c\n\n"
    assert cut("aaaa aaaa b. c\nd. e f g h") == "aaaa aaaa b. c\n"
    assert cut("aaaa aaaa b. cd e f g h i") == "aaaa aaaa b. "
    assert cut("aaaa aaaa b cd efghijklmnop") == "aaaa aaaa b cd "
    assert cut("a" * 30) == "a" * 20


def test_jsonl_reads_its_field_and_skips_blank_lines(tmp_path):
    put(
        tmp_path / "a.jsonl",
        '{"text": "a\\nb"}\n\n{"body": "c", "text": null}\n{"text": "\\ud83d\\ude00"}',
    )
    found, counts = read(f"jsonl:{tmp_path}/a.jsonl")
    assert found == ["a\nb", "😀"] and counts.empty == 1 and counts.read == 3
    assert read(f"jsonl:{tmp_path}/a.jsonl", field="text")[0] == found


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "a"', "2: not JSON: Expecting ',' delimiter at character 14"),
        ('{"body": "a", "id": 1}', "2: no field 'text'; there are: 'body', 'id'"),
        ("{}", "2: no field 'text'; there are: none"),
        ('["text"]', "2: a JSON list, not an object with field 'text'"),
        ('{"text": 3}', "2: field 'text' holds int, not text"),
        ('{"text": "a\\ud800"}', "2: field 'text' has the lone surrogate \\ud800"),
        ('{"id": ' + "9" * 5000 + "}", "2: not JSON: Exceeds the limit"),
        ('{"text": ' + "[" * 100_000, "2: not JSON: "),
    ],
)
def test_bad_jsonl_is_named_by_file_and_line(tmp_path, line, message):
    path = put(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read(f"jsonl:{path}")
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


def test_parquet(tmp_path):
    rows = ["one", None, "", "two 한국어"] * 100
    table = pa.table({"text": rows, "id": list(range(400))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=37)
    pq.write_table(
        pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()}), tmp_path / "b.parquet"
    )
    found, counts = read(f"parquet:{tmp_path}/*.parquet")
    assert found == ["one", "two 한국어"] * 100 + ["x", "y", "x"] and counts.empty == 200
    with pytest.raises(DataError, match=r"a\.parquet: no column 'body'; there are: 'text', 'id'"):
        read(f"parquet:{tmp_path}/a.parquet", field="body")
    with pytest.raises(DataError, match="column 'id' holds int64, not strings"):
        read(f"parquet:{tmp_path}/a.parquet", field="id")
    put(tmp_path / "c.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"c\.parquet: not a readable parquet file"):
        read(f"parquet:{tmp_path}/c.parquet")
    bad = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.array([0, 1, 3], np.int32).tobytes()), pa.py_buffer(b"ab\xff")
    )
    pq.write_table(pa.table({"text": bad}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet:2:2: byte 0xff"):
        read(f"parquet:{tmp_path}/d.parquet")


@pytest.mark.parametrize(
    "uri, error, message",
    [
        ("text:nothing/*.txt", MissingInput, "no file matches text:nothing/.*looked from"),
        ("txt:a", ConfigError, "no known kind before the colon; did you mean text"),
        ("words", ConfigError, "'words' has no known kind"),
        ("embedded:french", ConfigError, "embedded:english"),
        ("corpus:x", ConfigError, "prepared already"),
        ("tfds:no_such_set/en", MissingInput, "not prepared in .*file_format=array_record.*jsonl"),
        ("tfds:???", ConfigError, "tfds:"),
    ],
)
def test_sources_that_are_not_there(uri, error, message):
    for use in (read, lambda uri: fingerprint(Source(uri))):
        with pytest.raises(error, match=message):
            use(uri)


def test_a_folder_is_not_a_pattern(tmp_path):
    with pytest.raises(MissingInput, match=r"is a folder; write text:.*/\*"):
        read(f"text:{tmp_path}")


def test_fingerprint_follows_the_files(tmp_path):
    path = put(tmp_path / "a.txt", "one")
    source = Source(f"text:{tmp_path}/*.txt")
    first = fingerprint(source)
    assert fingerprint(source) == first
    os.utime(path, ns=(1, 1))
    second = fingerprint(source)
    put(tmp_path / "b.txt", "two")
    assert len({first, second, fingerprint(source)}) == 3


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set as TFDS lays it on the disk, two splits, one record with a bad byte."""
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "notes" / "1.0.0"
    folder.mkdir(parents=True)
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict({"text": text, "id": np.int64, "raw": text})
    infos = []
    for split, count in (("train", 150), ("test", 2)):
        name = f"notes-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for n in range(count):
            raw = b"ok\xff" if n == 7 else b"ok"
            record = {"text": f"note {n} 한국어", "id": n, "raw": raw}
            writer.write(features.serialize_example(features.encode_example(record)))
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="notes", split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[count], num_bytes=1, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, check_data=False
    )
    return root


def test_tfds_by_name_by_folder_and_by_split(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    expected = [f"note {n} 한국어" for n in range(150)]
    assert read("tfds:notes")[0] == expected
    assert read("tfds:notes:1.0.0", split="train[10:12]")[0] == expected[10:12]
    assert read(f"tfds:{tfds_folder}/notes/1.0.0", split="test")[0] == expected[:2]
    assert fingerprint(Source("tfds:notes")) != fingerprint(Source("tfds:notes", split="test"))
    with pytest.raises(ConfigError, match="no split 'dev'; there are: "):
        read("tfds:notes", split="dev")
    with pytest.raises(DataError, match="no field 'body'; there are: id, raw, text"):
        read("tfds:notes", field="body")
    with pytest.raises(DataError, match="field 'id' holds int"):
        read("tfds:notes", field="id")
    with pytest.raises(DataError, match=r"tfds:notes:train:7:3: byte 0xff is not UTF-8"):
        read("tfds:notes", field="raw")
    assert "tensorflow" not in sys.modules


def test_tfds_in_the_format_of_tensorflow_is_refused(tfds_folder, tmp_path):
    info = json.loads((tfds_folder / "notes/1.0.0/dataset_info.json").read_text())
    put(tmp_path / "dataset_info.json", json.dumps(info | {"fileFormat": "tfrecord"}))
    put(tmp_path / "features.json", (tfds_folder / "notes/1.0.0/features.json").read_bytes())
    with pytest.raises(MissingInput, match=r"stored as tfrecord.*file_format=array_record"):
        read(f"tfds:{tmp_path}")


def test_the_embedded_corpus_is_english_prose():
    found, counts = read("embedded:english")
    text = "\n\n".join(found)
    assert 1_000_000 < len(text) < 4_000_000 and counts.documents > 300
    assert ">>>" not in text and "def __init__" not in text
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert sum(p.count(" the ") for p in paragraphs) > 10_000
    assert english.fingerprint() == english.fingerprint()


def test_the_embedded_corpus_says_when_there_are_no_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(english, "_root", lambda: tmp_path)
    english._files.cache_clear()
    try:
        with pytest.raises(MissingInput, match=r"standard library's \.py files"):
            english.fingerprint()
    finally:
        english._files.cache_clear()
