"""Bad data, injected for real: it stops a run with its place, or is counted, and is never trained
on in silence.
"""

import dataclasses
import json
import re
import shutil
import time

import numpy as np
import pytest

from flaxlm import train
from flaxlm.batch import FEATURES, check_features
from flaxlm.data import prepared
from flaxlm.data.batches import Batches, EvalBatches
from flaxlm.data.corpus import Corpus
from flaxlm.data.corpus_files import check_once, checksum
from flaxlm.data.formats import Counts
from flaxlm.data.order import BLOCK
from flaxlm.data.prepare import prepare
from flaxlm.data.sources import documents
from flaxlm.data.spec import Data, Phase, Source, Vocabulary
from flaxlm.data.vocab import train_vocab
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives.causal_lm import CausalLM, StreamLM
from flaxlm.objectives.denoising import Denoising
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence, SentenceOrder
from flaxlm.objectives.permutation_lm import PermutationLM
from flaxlm.objectives.prefix_lm import PrefixLM
from flaxlm.objectives.replaced_token import ReplacedToken
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.objectives.units import Ngrams, WholeWords
from tests import runs
from tests.fakes import VOCAB, FakeCorpus

SPEC = Vocabulary(size=400, kind="bpe")


@pytest.fixture(scope="module")
def vocab(text_file):
    return train_vocab([text_file.read_text()], SPEC)


@pytest.fixture(scope="module")
def whole(vocab, text_file, tmp_path_factory):
    """A sound corpus of several shards; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    lines = text_file.with_name("lines.txt")
    lines.write_text(text_file.read_text().replace("\n\n", "\n"))
    source = Source(f"lines:{lines}")
    prepare([source], vocab, folder, held_out_share=0.1, workers=1, shard_characters=40_000)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "corpus")


@pytest.fixture
def refused(data_cache, tmp_path, capsys, monkeypatch):
    """`refused(*overrides) -> (exit code, last line)` of the tiny experiment."""
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))

    def run(*overrides):
        argv = ["--experiment", runs.TINY, f"--run.directory={tmp_path / 'run'}", *overrides]
        code = train.main(argv)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("flaxlm: ")
        return code, line

    return run


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


# Prepared corpora.


@pytest.mark.faults(15)
@pytest.mark.parametrize(
    "how, damage",
    [
        ("one bit flipped in", lambda path: flip(path, len(path.read_bytes()) // 2)),
        ("cut off at its end:", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("emptied:", lambda path: path.write_bytes(b"")),
        ("deleted:", lambda path: path.unlink()),
    ],
)
def test_a_damaged_corpus_stops_the_run_at_its_start(how, damage, copied, refused, fault_row):
    path = sorted(copied.glob("flaxlm_corpus-train.*"))[1]
    damage(path)
    code, line = refused(f"--data.sources.0.uri=corpus:{copied}")
    assert code == 65 and f"corpus file {path}" in line
    fault_row(
        injected=f"{how} a shard of a prepared corpus",
        happened="stops before the first step, names the file",
        exit_code=65,
    )


@pytest.mark.faults(15)
def test_a_record_that_breaks_during_the_run_is_named(copied, refused, monkeypatch, fault_row):
    monkeypatch.setattr(prepared, "check_once", lambda *_: None)  # whole when the run began
    for path in copied.glob("flaxlm_corpus-train.*"):
        content = bytearray(path.read_bytes())
        content[200:20_000] = bytes(19_800)  # records; the file's index is at its end
        path.write_bytes(content)
    code, line = refused(f"--data.sources.0.uri=corpus:{copied}", "--run.steps=2")
    place = r"array_record-\S+: record \d+ \(document \d+ of train\) is damaged"
    assert code == 65 and re.search(place, line), line
    fault_row(
        injected="records of a corpus overwritten after the check at the start",
        happened="stops at the first that is read, names file, record and document",
        exit_code=65,
        lost="steps since the last save",
    )


def test_every_byte_is_compared_once_per_machine_and_state(copied, tmp_path, monkeypatch):
    from flaxlm.data import corpus_files

    read, digest = [], corpus_files.digest
    monkeypatch.setattr(corpus_files, "_digest", lambda p: read.append(p.name) or digest(p))
    check_once(copied, tmp_path / "cache")
    files = json.loads((copied / "MANIFEST.json").read_text())["files"]
    assert sorted(read) == sorted(files)
    check_once(copied, tmp_path / "cache")
    assert len(read) == len(files)
    (copied / "vocab.model").touch()
    check_once(copied, tmp_path / "cache")
    check_once(copied, tmp_path / "another")
    assert len(read) == 3 * len(files)


@pytest.mark.faults(15)
def test_any_flipped_bit_of_a_manifest_is_found(copied, fault_row):
    path = copied / "MANIFEST.json"
    content = path.read_bytes()
    for at in range(0, len(content), max(len(content) // 300, 1)):
        flip(path, at)
        try:
            assert Corpus.open(copied)._manifest == json.loads(content)  # white space
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        path.write_bytes(content)
    fault_row(
        injected="bits of a corpus's manifest flipped",
        happened="stops before the first step: it is not as its own checksum says",
        exit_code=65,
    )


def test_shards_with_other_documents_than_the_manifest_says(copied):
    path = copied / "MANIFEST.json"
    manifest = json.loads(path.read_bytes())
    name = manifest["splits"]["train"]["shards"][0]
    manifest["files"][name]["records"] += 1
    manifest["checksum"] = checksum(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the shards hold"):
        Corpus.open(copied)


@pytest.mark.faults(12)
def test_another_vocabulary_of_the_same_size_is_refused(
    text_file, vocab, copied, data_cache, tmp_path, capsys, monkeypatch, fault_row
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    path = tmp_path / "own.model"
    path.write_bytes(vocab.model)
    argv = runs.arguments(
        text_file, tmp_path / "run", f"--data.vocabulary.path={path}", "--run.steps=2"
    )
    assert train.main(argv) == 0
    other = train_vocab([text_file.read_text()[::-1]], SPEC)
    assert other.pieces == vocab.pieces
    path.write_bytes(other.model)
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert train.main(argv) == 66
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert vocab.sha256 in line and other.sha256 in line
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before
    fault_row(
        injected="vocabulary file replaced by another one of the same size, run resumed",
        happened="refused: both hashes are named, the checkpoints stay",
        exit_code=66,
    )
    corpus = [
        f"--data.sources.0.uri=corpus:{copied}",
        f"--run.directory={tmp_path / 'second'}",
        *(word for word in argv if word.startswith(("--data.vocab", "--run.steps"))),
    ]
    assert train.main(["--experiment", runs.TINY, *corpus]) == 66
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert vocab.sha256 in line and other.sha256 in line
    fault_row(
        injected="prepared corpus named together with another vocabulary of the same size",
        happened="refused before the first step, both hashes are named",
        exit_code=66,
    )


# Nothing to train on.


@pytest.mark.faults(16)
@pytest.mark.parametrize(
    "content, changes, said",
    [
        (b" \n" * 1200, (), r"0 documents after filtering \(in 1,200, dropped: empty 1,200\)"),
        (b"\xff\n" * 3, ("on_decode_error=skip",), r"\(in 3, dropped: skipped 3\)"),
        (b"", (), r"0 documents after filtering \(in 0\)"),
    ],
)
def test_a_data_set_that_is_empty_says_why(
    content, changes, said, tmp_path, text_file, refused, fault_row
):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    settings = [f"--data.sources.0.{change}" for change in changes]
    code, line = refused(f"--data.sources.0.uri=lines:{path}", *settings)
    assert code == 65 and str(path) in line and re.search(said, line), line
    fault_row(
        injected="source whose documents are all filtered out",
        happened="stops before the first step: how many were read, and what each was dropped for",
        exit_code=65,
    )


@pytest.mark.faults(16)
def test_an_empty_component_of_a_mixture_is_named(tmp_path, text_file, vocab, fault_row):
    path = tmp_path / "empty.txt"
    path.write_text("\n\n")
    sources = (Source(f"text:{text_file}"), Source(f"lines:{path}", weight=0.01))
    with pytest.raises(DataError, match=rf"{path}: 0 documents after filtering \(in 2, "):
        prepared.open_data(Data(sources, 8, 32, SPEC), cache=tmp_path / "cache")
    with pytest.raises(DataError, match=rf"{path}: 0 documents after filtering \(in 2, "):
        prepare(sources, vocab, tmp_path / "c")
    fault_row(
        injected="one source of a mixture is empty",
        happened="stops before the first step, names it with its counts",
        exit_code=65,
    )


@pytest.mark.faults(16)
def test_an_evaluation_without_a_row_is_refused(fault_row):
    held_out = [(FakeCorpus([3, 0, 0]), 1.0)]
    data = Data((Source("fake:a"),), 16, 32, held_out=(Source("fake:b"),))
    said = r"fake:b \(held out\): 3 tokens in 3 documents \(2 empty\) do not make one row of 34"
    with pytest.raises(DataError, match=said):
        EvalBatches(held_out, SpanCorruption(), VOCAB, data=data, count=2)
    fault_row(
        injected="held-out set too small for one row",
        happened="stops before the first step: tokens, documents, how many of these are empty",
        exit_code=65,
    )


@pytest.mark.faults(16)
def test_less_than_a_batch_is_repeated_in_training_and_padded_in_evaluation(fault_row):
    components = [(FakeCorpus([40, 40, 40]), 1.0)]
    data = Data((Source("fake:a"),), 16, 32, packing="split", held_out=(Source("fake:a"),))
    batches = Batches(components, CausalLM(), VOCAB, data=data, seed=0)
    rows = batches.counts[0].rows
    assert rows == 6  # two pieces of each document
    seen = np.concatenate([batches[step]["targets"] for step in range(3)])
    times = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(times) == rows and times.tolist() == [8] * rows
    held_out = EvalBatches(components, CausalLM(), VOCAB, data=data, count=5)
    assert len(held_out) == 1
    assert np.count_nonzero(held_out[0]["weights"].any(axis=1)) == rows
    fault_row(
        injected="source with fewer rows than a batch",
        happened="training repeats its rows evenly, which the banner says; evaluation pads",
        exit_code=None,
    )


# Text.

BAD = b"good \xff line\n\nanother\n\xed\xa0\x80surrogate\n"


@pytest.mark.faults(17)
@pytest.mark.parametrize("kind", ["text", "lines", "jsonl"])
def test_what_is_not_utf8_stops_is_replaced_or_left_out(kind, tmp_path, fault_row):
    path = tmp_path / "a"
    lines = BAD.splitlines(keepends=True)
    if kind == "jsonl":
        lines = [b'{"text": "%s"}\n' % line.strip() for line in lines]
        lines[3] = b'{"text": "\\ud800 surrogate"}\n'
    path.write_bytes(b"".join(lines))

    def read(policy):
        counts = Counts()
        return list(
            documents(Source(f"{kind}:{path}", on_decode_error=policy), counts=counts)
        ), counts

    with pytest.raises(DataError, match=rf"^{path}:1:\d+: byte 0xff is not UTF-8.*replace or skip"):
        read("error")
    replaced, counts = read("replace")
    assert "\n".join(replaced).startswith("good � line")
    assert counts.replaced == (2 if kind == "jsonl" else 4) and counts.skipped == 0
    if kind == "text":
        good = tmp_path / "b"
        good.write_text("fine")
        path = tmp_path / "*"
        assert read("skip")[0] == ["fine"] and read("skip")[1].skipped == 1
    else:
        left, counts = read("skip")
        assert left == ["another"]
        assert (counts.read, counts.skipped, counts.empty, counts.documents) == (4, 2, 1, 1)
    with pytest.raises(ConfigError, match="on_decode_error='ignore'; known: error, replace, skip"):
        read("ignore")
    fault_row(
        injected=f"{kind}: bytes that are not UTF-8, halves of surrogate pairs",
        happened="stops with file:line:byte; on_decode_error=replace or skip goes on, counted",
        exit_code=65,
    )


@pytest.mark.faults(17)
def test_replacing_does_not_depend_on_where_the_reader_cuts(tmp_path):
    bytes_of = np.frombuffer("a\r\n é한😀".encode() + b"\xff\xc3\xe9\x80\xf0", np.uint8)
    content = np.random.default_rng(0).choice(bytes_of, 300_000).tobytes()
    path = tmp_path / "a"
    path.write_bytes(content)
    found = list(documents(Source(f"text:{path}", on_decode_error="replace"), longest=1 << 20))
    text = content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    assert found == [text.strip()]


@pytest.mark.faults(17)
@pytest.mark.parametrize("kind", ["text", "lines", "jsonl"])
def test_a_line_of_40_megabytes(kind, tmp_path, fault_row):
    text = "many words\0 of one line. " * 1_600_000
    path = tmp_path / "a"
    path.write_text(json.dumps({"text": text}) if kind == "jsonl" else text)
    counts, begun = Counts(), time.process_time()
    length = sum(len(part) + 1 for part in documents(Source(f"{kind}:{path}"), counts=counts))
    assert time.process_time() - begun < 20
    assert length == len(text) - text.count("\0") and counts.nul == counts.cut == 1
    fault_row(
        injected="one line of 40 MB; NUL bytes, byte order mark, CRLF, empty lines",
        happened="cut at word borders, line ends unified, the rest removed; all counted",
        exit_code=None,
    )


@pytest.mark.faults(17)
def test_bytes_that_are_not_utf8_stop_a_run(tmp_path, refused):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nbr\xffken\n")
    code, line = refused(f"--data.sources.0.uri=lines:{path}")
    assert code == 65 and f"{path}:2:3: byte 0xff" in line


# Documents that are too long or too short.

ODD = FakeCorpus([0, 1, 2, 300, 0, 0, 1, 3, 1, 31, 32, 33, 0, 64, 1, 0, 500, 2, 1] * 3)
OBJECTIVES = [
    CausalLM(),
    StreamLM(),
    PrefixLM(),
    SpanCorruption(),
    Denoising(),
    PermutationLM(predicted=4, reuse=8),
    MaskedLM(slots=5),
    MaskedLM(slots=5, dither=True),
    MaskedLM(slots=5, units=WholeWords()),
    MaskedLM(slots=5, units=Ngrams()),
    MaskedLM(slots=5, pairs=NextSentence()),
    MaskedLM(slots=5, pairs=SentenceOrder()),
    ReplacedToken(masked=MaskedLM(slots=5)),
]


def _cases():
    for objective in OBJECTIVES:
        for packing in objective.packings:
            name = "".join(c for c in repr(objective) if c.isalnum())
            yield pytest.param(objective, packing, id=f"{name[:70]}-{packing}")


@pytest.mark.faults(18)
@pytest.mark.parametrize("objective, packing", list(_cases()))
def test_documents_of_no_one_and_very_many_tokens(objective, packing, fault_row):
    data = Data((Source("fake:a"),), 16, 32, packing=packing)
    batches = Batches([(ODD, 1.0)], objective, VOCAB, data=data, seed=0)
    counts = batches.counts[0]
    assert counts.empty == 15 and counts.split >= 6
    weights = {term.weights for term in objective.terms.values()}
    for step in range(40):
        features = batches[step]  # ranges are checked
        for name in weights:
            assert np.isfinite(features[name]).all()
            assert features[name].sum() > 0, (step, name)
        if "weights" in features:
            side = "decoder_segments" if "decoder_segments" in features else "segments"
            assert not features["weights"][features[side] == 0].any()
    fault_row(
        injected="documents of 0, 1 and 2 tokens, and 15 rows long",
        happened="empty ones make no row, long ones are cut into rows, every batch has targets; "
        "the banner counts them",
        exit_code=None,
    )


@pytest.mark.faults(18)
@pytest.mark.parametrize("packing", ["split", "pack", "sentences", "full_sentences", "stream"])
def test_no_target_is_lost_where_documents_are_cut(packing):
    data = Data((Source("fake:a"),), 8, 32, packing=packing)
    batches = Batches([(ODD, 1.0)], CausalLM(), VOCAB, data=data, seed=0)
    counts = batches.counts[0]
    held_out = EvalBatches([(ODD, 1.0)], CausalLM(), VOCAB, data=data, count=1000)
    targets = np.concatenate([f["targets"][f["weights"] > 0] for f in held_out])
    expected = np.concatenate([[*text, VOCAB.eos] for text in ODD.texts if len(text)])
    assert counts.tokens == len(expected)
    assert len(targets) == counts.tokens - counts.dropped
    if not counts.dropped:
        assert np.array_equal(np.sort(targets), np.sort(expected))
    assert counts.dropped < 32 and (packing == "stream" or not counts.dropped)


@pytest.mark.faults(18)
def test_a_masked_row_with_text_has_a_target():
    tokens = FakeCorpus([1, 1, 2, 40, 1, 3] * 5)
    for packing in ("split", "sentences", "stream"):
        data = Data((Source("fake:a"),), 16, 16, packing=packing)
        batches = Batches([(tokens, 1.0)], MaskedLM(slots=3), VOCAB, data=data, seed=0)
        for step in range(20):
            features = batches[step]
            text = (features["segments"] > 0).any(axis=1)
            assert (features["slot_weights"].sum(axis=1)[text] >= 1).all()


# What points outside of a table.


@pytest.mark.faults(19)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("bad", [VOCAB.size, -1, -(2**31), 2**31 - 1])
def test_ids_outside_the_vocabulary_are_named(objective, bad):
    texts = [text.copy() for text in FakeCorpus([30] * 40).texts]
    texts[7][11] = bad
    data = Data((Source("fake:a"),), 16, 32, packing=objective.packings[0])
    batches = Batches([(FakeCorpus(texts), 1.0)], objective, VOCAB, data=data, seed=0)
    with pytest.raises(DataError, match=rf"^row \d+, tokens\[\d+\]: token id {bad} is outside"):
        for step in range(8):
            batches[step]


@pytest.mark.faults(19)
def test_a_corpus_with_ids_of_another_vocabulary_stops_the_run(
    vocab, text_file, tmp_path, refused, fault_row
):
    class Beyond:
        """The vocabulary, but full stops get an id that it has not."""

        def __getattr__(self, name):
            return getattr(vocab, name)

        def encode_batch(self, texts, **options):
            stop = vocab.encode_batch(["A word."])[0][-1]
            found = vocab.encode_batch(texts, **options)
            return [[5000 if at == stop else at for at in ids] for ids in found]

    prepare([Source(f"text:{text_file}")], Beyond(), tmp_path / "c", held_out_share=0)
    code, line = refused(f"--data.sources.0.uri=corpus:{tmp_path / 'c'}", "--data.held_out_share=0")
    assert code == 65 and re.search(r"row \d+, tokens\[\d+\]: token id 5000 is outside", line), line
    fault_row(
        injected="ids at or above the vocabulary's size, and negative ones, in a corpus",
        happened="stops at the batch that has it: row, position and id",
        exit_code=65,
        lost="steps since the last save",
    )


@pytest.mark.faults(19)
@pytest.mark.parametrize("bad", [-1, 2, 2**31 - 1])
def test_what_is_looked_up_in_a_table_is_checked(bad, fault_row):
    objective = MaskedLM(slots=5, pairs=NextSentence())
    data = Data((Source("fake:a"),), 16, 32, packing="sentences")
    sound = Batches([(FakeCorpus([50] * 40), 1.0)], objective, VOCAB, data=data, seed=0)[0]
    names = [name for name in sound if FEATURES[name].below is not None]
    assert {"tokens", "types", "positions", "slots", "slot_targets", "labels"} == set(names)
    tables = {"types": 2}
    check_features(sound, vocab_size=VOCAB.size, tables=tables)
    for name in names:
        value = bad if bad < 0 or name in ("types", "labels") else bad + 2**20
        value = min(value, 2**31 - 1)
        array = sound[name].copy()
        where = (3,) if array.ndim == 1 else (3, 2)
        array[where] = value
        place = "[]" if array.ndim == 1 else "[2]"
        with pytest.raises(DataError) as caught:
            check_features(
                {**sound, name: array},
                vocab_size=VOCAB.size,
                rows=np.arange(100, 116),
                tables=tables,
            )
        assert str(caught.value).startswith(f"row 103, {name}{place}: ")
        assert str(value) in str(caught.value) and caught.value.code == 65
    fault_row(
        injected="types, positions, slots and labels outside of their tables",
        happened="stops before the transfer: row, position and value",
        exit_code=65,
    )


# Mixtures.


def test_shares_as_used_are_those_of_the_rows():
    data = Data(
        (Source("fake:a"), Source("fake:b"), Source("fake:c")), 16, 32,
        phases=(Phase(5, 32, 24), Phase(9, 16, 8)),
    )  # fmt: skip
    corpora = [(FakeCorpus([900], seed=c), weight) for c, weight in enumerate([3.0, 1.0, 0.001])]
    corpora = [(FakeCorpus([np.full(900, 10 + c)]), w) for c, (_, w) in enumerate(corpora)]
    batches = Batches(corpora, CausalLM(), VOCAB, data=data, seed=0)
    seen = np.zeros(3)
    for step in range(15):
        rows = batches[step]["targets"].max(axis=1) - 10
        seen += np.bincount(rows, minlength=3)
        assert np.allclose(batches.used(step + 1), seen / seen.sum(), rtol=0, atol=1e-12)
    block = Batches(
        corpora, CausalLM(), VOCAB, data=dataclasses.replace(data, phases=(), batch=BLOCK), seed=0
    )
    assert block.used(7) == block.fractions == [0.7498, 0.2499, 0.0003]


def test_shares_are_in_the_banner_and_in_the_metrics(
    text_file, data_cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    experiment = tmp_path / "two.py"
    experiment.write_text(
        "from dataclasses import replace\n"
        "from tests.experiments.tiny_span import experiment as base\n"
        "from flaxlm.data.spec import Source\n"
        f"one = Source('text:{text_file}', weight=3.0)\n"
        "data = replace(base.data, sources=(one, replace(one, weight=1.0)))\n"
        "experiment = replace(base, data=data)\n"
    )
    argv = ["--experiment", str(experiment), f"--run.directory={tmp_path}/run", "--run.steps=2"]
    assert train.main(argv) == 0
    printed = capsys.readouterr().out
    assert f"mixture  75.00% text:{text_file}, 25.00% text:{text_file}\n" in printed
    last = runs.metrics(tmp_path / "run")[-1]
    assert last["mixture/0"] + last["mixture/1"] == 1 and last["mixture/1"] in (
        0.125,
        0.1875,
        0.25,
        0.3125,
        0.375,
    )
