"""Fuzzing of prepared corpora: damaged anywhere they give the right tokens or are refused with one
line; and rows of any documents hold every token once.
"""

import itertools
import json
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from flaxlm.data.corpus import Corpus, serialize
from flaxlm.data.corpus_files import checksum
from flaxlm.data.pack import Windows
from flaxlm.data.prepare import prepare
from flaxlm.data.spec import Source
from tests import fuzz
from tests.fakes import FakeCorpus
from tests.vocabs import TEXTS, made

SHARD = "flaxlm_corpus-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": text[:700]}) + "\n" for text in TEXTS)
    )
    prepare([Source(f"jsonl:{folder}/a.jsonl")], made("bpe"), folder / "c", held_out_share=0.2)
    return folder / "c"


@pytest.fixture(scope="module")
def copied(whole, tmp_path_factory):
    """A copy that a test damages, and mends before it returns."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "corpus")


@pytest.fixture(scope="module")
def right(whole):
    corpus = Corpus.open(whole)
    return [
        (tokens.tolist(), starts.tolist()) for tokens, starts in corpus.read(np.arange(len(corpus)))
    ]


@fuzz.inputs(300)
@given(st.data())
def test_a_file_damaged_anywhere_is_refused(whole, copied, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in whole.iterdir())))
    content = bytearray((whole / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    (copied / name).write_bytes(content)
    with fuzz.refused() as errors:
        corpus = Corpus.open(copied, verify="hashes")
    same = content == (whole / name).read_bytes()
    shutil.copy(whole / name, copied / name)
    if not errors:  # white space in the manifest
        assert same or (
            name == "MANIFEST.json" and corpus._manifest == Corpus.open(whole)._manifest
        )
    else:
        assert name in str(errors[0]) and errors[0].code in (65, 66)


@fuzz.inputs(300)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=5)), min_size=1, max_size=3))
def test_a_shard_that_breaks_while_it_is_read(whole, copied, right, damages):
    """Nothing is compared with a hash here: the records' own checksums are all there is."""
    content = bytearray((whole / SHARD).read_bytes())
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    for place, new in damages:
        at = int(used[place % len(used)])
        if new:
            content[at : at + len(new)] = new
        else:
            content[at] ^= 1 << place % 8
    del content[(whole / SHARD).stat().st_size :]
    (copied / SHARD).write_bytes(content)
    corpus = Corpus.open(copied)
    for at in range(len(corpus)):
        with fuzz.refused() as errors:
            tokens, starts = corpus.read(np.array([at]))[0]
        if errors:
            assert SHARD in str(errors[0]) and errors[0].code == 65
        else:
            assert (tokens.tolist(), starts.tolist()) == right[at]
    shutil.copy(whole / SHARD, copied / SHARD)


@st.composite
def records(draw):
    """The bytes of a record: a document, or what a broken writer might leave."""
    kind = draw(st.sampled_from(["right", "right", "any", "example", "cut"]))
    if kind == "any":
        return draw(st.binary(max_size=30))
    if kind == "example":
        example = tf_example_pb2.Example()
        for name in draw(st.lists(st.sampled_from(["tokens", "sentences", "x"]), max_size=3)):
            feature = example.features.feature[name]
            form = draw(st.sampled_from(["bytes", "bytes", "ints", "none"]))
            if form == "bytes":
                feature.bytes_list.value.append(draw(st.binary(max_size=13)))
            elif form == "ints":
                feature.int64_list.value.append(3)
        return example.SerializeToString()
    tokens = np.array(draw(st.lists(st.integers(0, 2**16 - 1), max_size=9)), "<u2")
    whole = serialize(tokens, np.arange(min(len(tokens), 1)))
    return whole if kind == "right" else whole[: draw(st.integers(0, len(whole)))]


@fuzz.inputs(200)
@given(st.lists(records(), min_size=1, max_size=4))
def test_records_of_any_content_are_read_or_refused(tmp_path_factory, contents):
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    writer = ArrayRecordWriter(str(folder / SHARD), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()
    np.save(folder / "offsets.npy", np.zeros(len(contents) + 1, np.int64))
    np.save(folder / "sentences.npy", np.zeros(1, np.int64))
    facts = {
        "documents": len(contents), "tokens": 0, "sentences": 0, "fingerprint": "",
        "shards": [SHARD], "offsets": "offsets.npy", "sentence_offsets": "sentences.npy",
    }  # fmt: skip
    manifest = {
        "dtype": "<u2", "vocab": {"sha256": ""}, "files": {SHARD: {"records": len(contents)}},
        "splits": {"train": facts},
    }  # fmt: skip
    manifest["checksum"] = checksum(manifest)
    corpus = Corpus(folder, "train", manifest)
    for at, content in enumerate(contents):
        with fuzz.refused() as errors:
            tokens, starts = corpus.read(np.array([at]))[0]
        if errors:
            assert f"record {at} (document {at} of train) is damaged" in str(errors[0])
        else:
            features = tf_example_pb2.Example.FromString(content).features.feature
            assert features["tokens"].bytes_list.value[0] == tokens.astype("<u2").tobytes()
            assert features["sentences"].bytes_list.value[0] == starts.astype("<u4").tobytes()


PACKINGS = st.sampled_from(["stream", "split", "pack", "sentences", "full_sentences"])


@fuzz.inputs(400)
@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(1, 17),
    PACKINGS,
    st.booleans(),
    st.data(),
)
def test_rows_of_any_documents_hold_every_token_once(sizes, width, packing, closed, data):
    """Tokens are numbered through, so that a row tells which it holds."""
    ends = np.cumsum([0, *sizes])
    texts = [10 + np.arange(a, b) for a, b in itertools.pairwise(ends)]
    starts = [
        sorted({0, *data.draw(st.lists(st.integers(0, size - 1), max_size=4))}) if size else []
        for size in sizes
    ]
    separator = 1 if closed else None
    with fuzz.refused() as errors:
        corpus = FakeCorpus(texts, starts=starts)
        windows = Windows(corpus, width=width, packing=packing, separator=separator)
    expected = [token for text in texts if len(text) for token in [*text, *[1] * closed]]
    if errors:
        assert len(expected) < (width if packing == "stream" else 1)
        return
    place = np.arange(len(windows))
    rows = windows.rows(place, np.zeros_like(place), index=place, pad=0)
    found = rows.tokens[rows.segments > 0].tolist()
    counts = windows.counts
    assert len(found) == counts.tokens - counts.dropped and counts.tokens == len(expected)
    assert counts.empty == sizes.count(0) and counts.dropped < width
    if packing == "pack":
        assert sorted(found) == sorted(expected)
    else:
        assert found == expected[: len(found)]
    assert not rows.tokens[rows.segments == 0].any()
    assert rows.tokens.shape == (counts.rows, width)
    for row in range(len(windows)):  # one at a time, and in any order, they are the same
        alone = windows.rows(place[row : row + 1], place[:1], index=place[row : row + 1], pad=0)
        assert np.array_equal(alone.tokens[0], rows.tokens[row])
