"""Prepared corpora: what is written is what was read, however often killed; damage is named."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece

from flaxlm.data import prepare as prepare_module
from flaxlm.data import prepared as prepared_module
from flaxlm.data.__main__ import main
from flaxlm.data.chunk import tokenise
from flaxlm.data.corpus import Corpus
from flaxlm.data.corpus_files import check_files, read_manifest
from flaxlm.data.files import cache_folder
from flaxlm.data.prepare import prepare
from flaxlm.data.prepared import open_data
from flaxlm.data.sentencepiece_vocab import SentencepieceVocab
from flaxlm.data.sources import documents
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.data.vocab import train_vocab
from flaxlm.errors import ConfigError, DataError, MissingInput, RunDirError, StorageError

TEXTS = [text.strip() for _, text in sorted(topics.items())[:60]]
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def vocab():
    return train_vocab(TEXTS[:30], Vocabulary(size=800, kind="bpe"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Source(f"jsonl:{path}")


@pytest.fixture(scope="module")
def whole(vocab, source, tmp_path_factory):
    """A corpus of several shards; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    prepare([source], vocab, folder, held_out_share=0.2, workers=1, shard_characters=40_000)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "corpus"))


def everything(folder):
    """Name -> sha256 of every file but the manifest, and the manifest without its sources."""
    manifest = read_manifest(folder)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    del files["MANIFEST.json"]
    return files, manifest["splits"]


def held_out(text, share):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < share * 2**64


def test_documents_come_back_as_their_tokens(whole, vocab):
    expected = {"train": [], "validation": []}
    for text in TEXTS:
        expected["validation" if held_out(text, 0.2) else "train"].append(text)
    assert len(expected["validation"]) > 5
    for split, texts in expected.items():
        corpus = Corpus.open(whole, split, vocab_sha256=vocab.sha256)
        assert len(corpus) == corpus.documents == len(texts)
        got = corpus.read(np.arange(len(corpus)))
        for (tokens, starts), text in zip(got, texts, strict=True):
            assert tokens.dtype == starts.dtype == np.int32
            [(own, own_starts)] = tokenise([text], vocab)
            assert tokens.tolist() == own.tolist() and starts.tolist() == own_starts.tolist()
            assert vocab.decode(tokens) == " ".join(unicodedata.normalize("NFKC", text).split())
        assert np.diff(corpus.offsets).tolist() == [len(tokens) for tokens, _ in got]
        assert corpus.offsets.dtype == np.int64 and isinstance(corpus.offsets, np.memmap)
        assert corpus.tokens == corpus.offsets[-1] == sum(len(tokens) for tokens, _ in got)
        begins = [starts + begin for (_, starts), begin in zip(got, corpus.offsets, strict=False)]
        index = corpus.sentence_offsets
        assert index.tolist() == [*np.concatenate(begins).tolist(), corpus.tokens]
        assert index.dtype == np.int64 and isinstance(index, np.memmap)
        order = np.random.default_rng(0).integers(0, len(corpus), 200)
        for at, (tokens, _) in zip(order, corpus.read(order), strict=True):
            assert tokens is not got[at][0] and tokens.tolist() == got[at][0].tolist()
        assert corpus.read(np.array([], np.int64)) == []
    assert len(read_manifest(whole)["splits"]["train"]["shards"]) > 3


def test_a_corpus_is_a_tfds_data_set(whole):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(whole)
    for split in ("train", "validation"):
        corpus = Corpus.open(whole, split)
        records = builder.as_data_source(split=split)
        assert len(records) == len(corpus)
        tokens, starts = corpus.read(np.array([2]))[0]
        assert records[2]["tokens"].tolist() == tokens.tolist()
        assert records[2]["sentences"].tolist() == starts.tolist()
    assert "tensorflow" not in sys.modules


def test_ids_above_16_bits(tmp_path, source):
    class Large:
        """As many ids as a large vocabulary; one per character, near the upper end."""

        pieces, unk, sha256, model, path = 100_000, 2, "f" * 64, b"model", ""
        keeps_spaces = False

        def encode_batch(self, texts):
            return [[99_000 + ord(c) % 1000 for c in text if not c.isspace()] for text in texts]

    prepare([source], Large(), tmp_path / "c", held_out_share=0, workers=1)
    corpus = Corpus.open(tmp_path / "c")
    assert read_manifest(tmp_path / "c")["dtype"] == "<u4"
    tokens, _ = corpus.read(np.array([0]))[0]
    assert tokens.min() >= 99_000 and len(tokens) == len("".join(TEXTS[0].split()))


def test_equal_texts_fall_on_the_same_side_and_the_choice_stays(tmp_path, vocab):
    texts = [f"text number {n}" for n in range(200)]
    for name, some in (("a", texts), ("b", texts[::-2] + texts[::-2])):
        (tmp_path / f"{name}.txt").write_text("\n".join(some))
        prepare(
            [Source(f"lines:{tmp_path}/{name}.txt")], vocab, tmp_path / name, held_out_share=0.3
        )

    def chosen(name, split):
        corpus = Corpus.open(tmp_path / name, split)
        return [vocab.decode(t) for t, _ in corpus.read(np.arange(len(corpus)))]

    for split in ("train", "validation"):
        few = chosen("b", split)
        assert len(few) == 2 * len(set(few)) and set(few) < set(chosen("a", split))
    assert 40 <= len(chosen("a", "validation")) <= 80


def test_a_share_that_chance_leaves_empty_holds_out_one(tmp_path, vocab):
    (tmp_path / "a.txt").write_text("\n".join(f"line {n}" for n in range(20)))
    source = Source(f"lines:{tmp_path}/a.txt")
    for characters in (1 << 20, 40):
        out = tmp_path / f"c{characters}"
        prepare([source], vocab, out, held_out_share=1e-9, shard_characters=characters, workers=1)
        assert len(Corpus.open(out, "train")) == 19 and len(Corpus.open(out, "validation")) == 1
    prepare([source], vocab, tmp_path / "none", held_out_share=0)
    assert len(Corpus.open(tmp_path / "none")) == 20
    with pytest.raises(ConfigError, match="no split 'validation'; there are: train"):
        Corpus.open(tmp_path / "none", "validation")


def test_counts_reach_the_manifest(tmp_path, vocab):
    (tmp_path / "a.txt").write_text("one\n\n\x01\x02\n" + "word " * 20_000 + "\nfour")
    manifest = prepare([Source(f"lines:{tmp_path}/a.txt")], vocab, tmp_path / "c", held_out_share=0)
    counts = manifest["sources"][0]["counts"]
    assert counts == {
        "read": 5, "empty": 1, "skipped": 0, "cut": 1, "nul": 0, "replaced": 0, "documents": 5
    }  # fmt: skip
    assert manifest["without_tokens"] == 1
    assert manifest["splits"]["train"]["documents"] == 4


def test_a_vocabulary_that_does_not_know_the_text_is_reported(tmp_path, capsys):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=400, minloglevel=3
    )
    (tmp_path / "a.txt").write_text("한국어 only\nplain words\n" + "plain\n" * 10)
    source = Source(f"lines:{tmp_path}/a.txt")
    vocab = SentencepieceVocab(model.getvalue())
    manifest = prepare([source], vocab, tmp_path / "c", held_out_share=0)
    assert manifest["splits"]["train"]["unknown"] == 1
    assert "% of the tokens of train are unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, share, message",
    [
        ("\n \n", 0.1, r"lines:.*: 0 documents after filtering \(in 2, dropped: empty 2\)"),
        ("", 0.0, r"0 documents after filtering \(in 0\)"),
        ("\x01", 0.0, r"\(in 1, dropped: control characters only 1\)"),
        ("one line", 0.1, "one document in .*: none can be held out"),
        ("one\ntwo", 0.999999, "all 2 documents of .* were held out"),
    ],
)
def test_too_little_text(tmp_path, vocab, content, share, message):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare([Source(f"lines:{tmp_path}/a.txt")], vocab, tmp_path / "c", held_out_share=share)
    assert not (tmp_path / "c").exists()


def test_workers_write_the_same_bytes(whole, vocab, source, tmp_path):
    out = tmp_path / "c"
    prepare([source], vocab, out, held_out_share=0.2, workers=2, shard_characters=40_000)
    assert everything(out) == everything(whole)


def test_preparing_again_changes_nothing_and_other_input_is_refused(copied, vocab, source):
    before = {p: p.stat().st_mtime_ns for p in copied.iterdir()}
    options = {"workers": 1, "shard_characters": 40_000}
    prepare([source], vocab, copied, held_out_share=0.2, **options)
    assert {p: p.stat().st_mtime_ns for p in copied.iterdir()} == before
    with pytest.raises(RunDirError, match="exists and holds something else"):
        prepare([source], vocab, copied, held_out_share=0.3, **options)
    assert sorted(p.name for p in copied.parent.iterdir()) == ["corpus", "corpus.lock"]


_KILLED = """
import sys, time
from flaxlm.data import chunk, prepare
from flaxlm.data.spec import Source
from flaxlm.data.vocab import load_vocab
real = chunk.write_chunk
def slow(*arguments):
    time.sleep(0.15)
    return real(*arguments)
prepare.write_chunk = slow
if __name__ == "__main__":
    source, vocab, out = sys.argv[1:]
    options = {"held_out_share": 0.2, "workers": 1, "shard_characters": 40_000}
    prepare.prepare([Source(source)], load_vocab(vocab), out, **options)
"""


def test_a_killed_preparation_goes_on(whole, source, vocab, tmp_path):
    out = tmp_path / "c"
    script = tmp_path / "slow.py"
    script.write_text(_KILLED)
    (tmp_path / "v.model").write_bytes(vocab.model)
    command = [sys.executable, str(script), source.uri, str(tmp_path / "v.model"), str(out)]
    seen = {}
    for wanted in (1, 3, 4):
        process = subprocess.Popen(command, env=_environment())
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("c.partial/chunks/*.json"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
        with pytest.raises(MissingInput, match="interrupted: give the same prepare command again"):
            Corpus.open(out)
        now = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("c.partial/chunks/*.json")}
        assert seen.items() <= now.items()  # what was finished is not made again
        seen = now
    prepare([source], vocab, out, held_out_share=0.2, workers=1, shard_characters=40_000)
    assert everything(out) == everything(whole)
    assert not (tmp_path / "c.partial").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_workers_die_with_their_parent(source, vocab, tmp_path):
    (tmp_path / "v.model").write_bytes(vocab.model)
    script = (
        "import sys; from flaxlm.data.prepare import prepare; from flaxlm.data.spec import Source;"
        "from flaxlm.data.vocab import load_vocab;"
        "prepare([Source(sys.argv[1])] * 5000, load_vocab('v.model'), 'c',"
        " workers=2, shard_characters=40_000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, source.uri], cwd=tmp_path, env=_environment()
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("c.partial/chunks/*.json"))) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("step", ["os.replace", "os.rename", "shutil.rmtree"])
def test_interrupted_at_the_end(whole, source, vocab, tmp_path, monkeypatch, step):
    """The last steps, each stopped at each of its calls in turn, leave nothing that looks whole."""
    out = tmp_path / "c"
    options = {"held_out_share": 0.2, "workers": 1, "shard_characters": 40_000}
    module, name = step.split(".")
    real = getattr(sys.modules[module], name)
    for stop_at in range(1, 60):
        calls = 0

        def stopping(*arguments, stop_at=stop_at, **named):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], name, stopping)
            try:
                prepare([source], vocab, out, **options)
                break
            except KeyboardInterrupt:
                assert not out.exists()
    assert calls < stop_at
    assert everything(out) == everything(whole)


def test_a_preparation_begun_from_other_input_starts_over(
    source, vocab, tmp_path, capsys, monkeypatch
):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([source], vocab, tmp_path / "c", held_out_share=0.2)
    prepare([source], vocab, tmp_path / "c", held_out_share=0)
    assert "starting over" in capsys.readouterr().err
    assert len(Corpus.open(tmp_path / "c")) == len(TEXTS)


def test_a_source_that_changed_under_a_finished_chunk_is_noticed(vocab, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {n}" for n in range(100)))
    os.utime(path, ns=(1, 1))
    source = Source(f"lines:{path}")

    def stop(*arguments):
        raise KeyboardInterrupt

    options = {"held_out_share": 0, "workers": 1, "shard_characters": 300}
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_result", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([source], vocab, tmp_path / "c", **options)
    assert list(tmp_path.glob("c.partial/chunks/*.json"))
    path.write_text(path.read_text().replace("line 1\n", "lone 1\n"))  # same size, same time
    os.utime(path, ns=(1, 1))
    prepare([source], vocab, tmp_path / "c", **options)
    assert vocab.decode(Corpus.open(tmp_path / "c").read(np.array([1]))[0][0]) == "lone 1"


def _damages():
    shard = "flaxlm_corpus-train.array_record-00001-of-"
    for name in (shard, "train.offsets.npy", "train.sentences.npy", "vocab.model"):
        yield name, "missing", lambda p: p.unlink(), "is missing"
        yield name, "truncated", lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, the manifest"
        yield name, "empty", lambda p: p.write_bytes(b""), "has 0 bytes, the manifest says"


@pytest.mark.parametrize("name, how, damage, message", list(_damages()))
def test_damaged_files_are_named_at_opening(copied, name, how, damage, message):
    [path] = copied.glob(name + "*")
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        Corpus.open(copied)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def _flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_bit_is_found_by_hashes_and_by_reading(copied, whole):
    [path] = copied.glob("flaxlm_corpus-train.array_record-00000-*")
    expected = Corpus.open(whole)
    original = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(original, np.uint8))
    noticed = 0
    for at in used[:: len(used) // 40].tolist():
        _flip(path, at)
        with pytest.raises(DataError, match="was changed: sha256"):
            Corpus.open(copied, verify="hashes")
        try:
            corpus = Corpus.open(copied)
            for i, (tokens, starts) in enumerate(corpus.read(np.arange(int(corpus._first[1])))):
                right = expected.read(np.array([i]))[0]
                assert tokens.tolist() == right[0].tolist()  # never wrong tokens
                assert starts.tolist() == right[1].tolist()
        except DataError as error:
            assert str(path) in str(error)
            noticed += 1
        path.write_bytes(original)
    assert noticed > 20


def test_a_swapped_shard_is_found(copied):
    """Same size, other content: sizes cannot tell, the check command can."""
    first, second = sorted(copied.glob("flaxlm_corpus-train.*"))[:2]
    assert first.stat().st_size == second.stat().st_size
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert main(["check", str(copied)]) == 65


def test_an_index_of_other_sentences_is_found(copied):
    index = np.load(copied / "train.sentences.npy")
    corpus = Corpus.open(copied)
    corpus.check(np.arange(3))
    index[1] += 1
    np.save(copied / "train.sentences.npy", index)
    with pytest.raises(DataError, match=r"document 0 is not as train\.sentences\.npy says"):
        Corpus.open(copied).check(np.arange(3))


def test_damaged_manifests(copied):
    path = copied / "MANIFEST.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99, this flaxlm reads 3"):
        Corpus.open(copied)
    for content in ("", "{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"MANIFEST\.json is damaged"):
            Corpus.open(copied)
    path.unlink()
    with pytest.raises(MissingInput, match=r"MANIFEST\.json is missing; no corpus there"):
        Corpus.open(copied)


def test_another_vocabulary_is_refused_with_both_hashes(whole, vocab):
    other = "0" * 64
    with pytest.raises(MissingInput) as caught:
        Corpus.open(whole, vocab_sha256=other)
    assert vocab.sha256 in str(caught.value) and other in str(caught.value)
    with pytest.raises(ConfigError, match="no split 'test'; there are: train, validation"):
        Corpus.open(whole, "test")


def test_pickling_and_threads(whole):
    corpus = Corpus.open(whole)
    corpus.read(np.array([0]))
    copy = pickle.loads(pickle.dumps(corpus))
    assert len(pickle.dumps(corpus)) < 100_000
    assert copy.fingerprint == corpus.fingerprint
    ids = np.arange(len(corpus))
    expected = [tokens.tolist() for tokens, _ in corpus.read(ids)]
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: copy.read(ids), range(32)):
            assert [tokens.tolist() for tokens, _ in got] == expected


def test_fingerprints_tell_splits_and_contents_apart(whole, vocab, source, tmp_path):
    first = {Corpus.open(whole, split).fingerprint for split in ("train", "validation")}
    prepare([source], vocab, tmp_path / "c", held_out_share=0.3)
    second = {Corpus.open(tmp_path / "c", split).fingerprint for split in ("train", "validation")}
    assert len(first | second) == 4


def test_a_full_disk_is_one_line(tmp_path, source, vocab):
    (tmp_path / "v.model").write_bytes(vocab.model)
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from flaxlm.data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["prepare", "--source", source.uri, "--vocab", "v.model", "--out", "c"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *command],
        capture_output=True, text=True, cwd=tmp_path, env=_environment(),
    )  # fmt: skip
    assert done.returncode == StorageError.code, done.stderr
    assert done.stderr.startswith("flaxlm: cannot write ") and done.stderr.count("\n") == 1


# --- what a run opens


def _data(source, **options):
    return Data(
        sources=(source,), batch=2, length=8, vocabulary=Vocabulary(size=800, kind="bpe"), **options
    )


def test_open_data_makes_things_once(source, tmp_path, capsys):
    first = open_data(_data(source, held_out_share=0.2), cache=tmp_path)
    assert "training a vocabulary of 800 bpe pieces" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    second = open_data(_data(source, held_out_share=0.2), cache=tmp_path)
    assert capsys.readouterr().err == ""
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert first.vocab.sha256 == second.vocab.sha256
    for prepared in (first, second):
        [(train, weight)], [(valid, _)] = prepared.train, prepared.held_out
        assert (weight, train.split, valid.split) == (1.0, "train", "validation")
        assert len(train) + len(valid) == len(TEXTS)
    without = open_data(_data(source, held_out_share=0.0), cache=tmp_path)
    assert without.held_out == [] and len(without.train[0][0]) == len(TEXTS)


def test_mixtures_are_one_corpus_per_source(source, tmp_path):
    path = tmp_path / "more.txt"
    path.write_text("\n".join(f"a line {n}" for n in range(50)))
    more = Source(f"lines:{path}", weight=3.0)
    data = Data(
        sources=(source, more), held_out=(more,), batch=2, length=8,
        vocabulary=Vocabulary(size=800, kind="bpe"),
    )  # fmt: skip
    prepared = open_data(data, cache=tmp_path / "cache")
    assert [(len(c), w) for c, w in prepared.train] == [(len(TEXTS), 1.0), (50, 3.0)]
    assert [(len(c), c.split, w) for c, w in prepared.held_out] == [(50, "train", 3.0)]


def test_a_prepared_corpus_brings_its_vocabulary(whole, vocab, source, tmp_path):
    prepared = open_data(_data(Source(f"corpus:{whole}")), cache=tmp_path)
    assert prepared.vocab.sha256 == vocab.sha256 and prepared.vocab.size == 900
    assert prepared.held_out[0][0].split == "validation"
    other = tmp_path / "other.model"
    other.write_bytes(train_vocab(TEXTS[30:], Vocabulary(size=700, kind="bpe")).model)
    data = Data((Source(f"corpus:{whole}"),), 2, 8, vocabulary=Vocabulary(path=str(other)))
    with pytest.raises(MissingInput, match="was made with vocabulary"):
        open_data(data, cache=tmp_path)


def test_a_damaged_cache_is_made_again(source, tmp_path, capsys):
    first = open_data(_data(source), cache=tmp_path).train[0][0]
    next(first.folder.glob("flaxlm_corpus-train*")).write_bytes(b"")
    second = open_data(_data(source), cache=tmp_path).train[0][0]
    assert "making it again" in capsys.readouterr().err
    assert second.fingerprint == first.fingerprint


def test_data_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        open_data(Data((), 1, 1), cache=tmp_path)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"weight .* of embedded:english: must be above 0"):
            open_data(Data((Source("embedded:english", weight=weight),), 1, 1), cache=tmp_path)


def test_two_processes_at_once(source, tmp_path):
    script = (
        "import sys; from pathlib import Path; from flaxlm.data.prepared import open_data;"
        "from flaxlm.data.spec import *;"
        "d = Data((Source(sys.argv[1]),), 2, 8, vocabulary=Vocabulary(size=800, kind='bpe'));"
        "p = open_data(d, cache=Path(sys.argv[2]));"
        "print(p.vocab.sha256, p.train[0][0].fingerprint, p.held_out[0][0].fingerprint)"
    )
    command = [sys.executable, "-c", script, source.uri, str(tmp_path)]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
        )
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum("training a vocabulary" in err for _, err in results) == 1
    assert sum("preparing" in err for _, err in results) == 1
    [folder] = [p for p in (tmp_path / "corpus").iterdir() if p.is_dir()]
    check_files(folder, read_manifest(folder), hashes=True)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FLAXLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "flaxlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "flaxlm"


# --- the commands


def test_the_commands(source, tmp_path, capsys):
    model, out = str(tmp_path / "v.model"), str(tmp_path / "c")
    assert main(["vocab", "--source", source.uri, "--out", model, "--size", "800"]) == 0
    assert "800 unigram pieces, sha256 " in capsys.readouterr().out
    command = ["prepare", "--source", source.uri, "--vocab", model, "--out", out]
    assert main([*command, "--held-out", "0.2"]) == 0
    assert "jsonl:" in capsys.readouterr().out
    assert main(["check", out]) == 0
    assert "every file is as the manifest says" in capsys.readouterr().out
    assert main(["show", out, "-n", "1"]) == 0
    shown = capsys.readouterr().out
    first = next(text for text in TEXTS if not held_out(text, 0.2))
    assert "document 0:" in shown and " ".join(first.split())[:30] in " ".join(shown.split())


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 78, "required: command"),
        (["prepar"], 78, "invalid choice: 'prepar'"),
        (["show", "x", "-n", "many"], 78, "invalid int value: 'many'"),
        (
            ["prepare", "--sourc", "a", "--vocab", "v", "--out", "o"],
            78,
            "--sourc: did you mean --source",
        ),
        (["vocab", "--source", "a", "--size", "9", "--out", "no/v.model"], 78, "no folder no"),
        (["vocab", "--source", "text:none", "--size", "9", "--out", "v"], 66, "no file matches"),
        (["prepare", "--source", "text:none", "--vocab", "none", "--out", "o"], 66, "vocabulary"),
        (["check", "none"], 66, "MANIFEST.json is missing"),
    ],
)
def test_wrong_commands_are_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("flaxlm: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_and_interleaving():
    def texts(source, **_):
        return iter([f"{source.uri}{n}" for n in range(source.weight)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared_module, "documents", texts)
        mixed = prepared_module.interleaved([Source("a", 3), Source("b", 1), Source("c", 2)])
        assert list(mixed) == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert prepared_module.documents is documents


def _environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
