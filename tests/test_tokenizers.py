"""Kinds of vocabularies beside sentencepiece: layout, encoding, training, corpora of them."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.data.__main__ import main
from flaxlm.data.chunk import tokenise
from flaxlm.data.prepared import open_data
from flaxlm.data.spec import KINDS, Data, Source, Vocabulary
from flaxlm.data.vocab import SPECIAL, load_vocab, train_vocab
from flaxlm.errors import ConfigError, DataError
from tests.vocabs import SIZE, TEXTS, WORDS, made


@pytest.fixture(params=["wordpiece", "bytes", "unigram"])
def vocab(request):
    return made(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_tracing_knows_the_ids_of_every_trained_kind(kind):
    blank, real = Vocabulary(size=SIZE, kind=kind).blank(), made(kind)
    for name in SPECIAL:
        assert getattr(blank, name) == getattr(real, name), name
    assert (blank.size, blank.pieces) == (real.size, real.pieces)
    assert blank.sentinels.tolist() == real.sentinels.tolist()
    assert blank.special.tolist() == real.special.tolist()
    assert blank.word_starts.shape == real.word_starts.shape == (real.size,)


def test_an_unknown_kind_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"vocabulary\.kind=wordpeace: did you mean wordpiece"):
        Vocabulary(kind="wordpeace").blank()


def test_layout_of_trained_kinds():
    words, over_bytes = made("wordpiece"), made("bytes")
    assert [words.piece(n) for n in range(5)] == WORDS[:5]
    assert [over_bytes.piece(n) for n in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert over_bytes.piece(SIZE - 1) == "<mask>"
    assert (over_bytes.bos, over_bytes.eos) == (over_bytes.cls, over_bytes.sep) == (0, 2)
    words.require("pad", "unk", "cls", "sep", "mask")
    over_bytes.require(*SPECIAL)
    with pytest.raises(ConfigError, match="has no eos, bos, sentinels, which the objective"):
        words.require("eos", "bos", "mask", "sentinels")
    assert words.special.nonzero()[0].tolist() == [0, 2, 3, 4]  # the unknown is text
    assert over_bytes.special.nonzero()[0].tolist() == [0, 1, 2, SIZE - 1]


def test_ids_of_small_wordpiece_vocabularies(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    cased = load_vocab(tmp_path / "vocab.txt")
    assert cased.encode("unaffable, in\u00a0é\u200b 中").tolist() == [5, 6, 7, 9, 8, 10, 1]
    assert cased.encode("UN " + "a" * 101).tolist() == [1, 1]
    lower = load_vocab(tmp_path / "vocab.txt", lowercase=True)
    assert lower.encode("UNAFFABLE É").tolist() == [5, 6, 7, 11]
    assert cased.word_starts.tolist() == [True] * 6 + [False] * 2 + [True] * 4
    assert cased.decode([2, 5, 6, 7, 9, 4, 3, 0]) == "[CLS] unaffable, [MASK] [SEP]"
    assert lower.sha256 != cased.sha256 and lower.model != cased.model
    assert cased.files()["vocab.txt"].decode().split("\n")[:-1] == WORDS
    assert load_vocab(tmp_path / "vocab.txt").sha256 == cased.sha256


def test_decoding_words_leaves_out_the_spaces_that_english_has_not():
    vocab = made("wordpiece", lowercase=True)
    text = "it isn't (a class): the method's argument, \"x\" and [y]!"
    assert vocab.decode(vocab.encode(text)) == text.replace('"x"', '" x "')


def test_bytes_lose_nothing():
    vocab = made("bytes")
    text = "  Two  spaces,\n\n\ttabs\r\nand 한국어 😀 \x00 don't"
    assert vocab.decode(vocab.encode(text)) == text
    starts = {vocab.piece(n) for n in np.flatnonzero(vocab.word_starts & ~vocab.special)}
    assert starts and all(piece[0] in "ĠĊĉčċČ" for piece in starts)
    half = vocab.encode("한")[:1]
    assert vocab.decode(half) == "\ufffd"


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_bytes_and_its_sentences(text):
    vocab = made("bytes")
    assert vocab.decode(vocab.encode(text)) == text
    [(tokens, starts)] = tokenise([text.rstrip()], vocab)
    assert tokens.tolist() == vocab.encode(text.rstrip()).tolist()
    assert not len(starts) or starts[0] == 0


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [*("the class", "Mr. X", "Yes!", "end.", "왜?", "가.", ".", "é"),
             *(" ", "\n\n", "\r\n", "\t", "\u3000", "\u2003", "\x1c")]
        ),
        max_size=20,
    )
)  # fmt: skip
@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_sentences_make_the_tokens_of_the_document(kind, parts):
    vocab = made(kind)
    text = "".join(parts).strip()
    [(tokens, starts)] = tokenise([text], vocab)
    assert tokens.tolist() == vocab.encode(text).tolist()
    if len(tokens):
        assert starts[0] == 0 and (np.diff(starts, append=len(tokens)) > 0).all()


def test_names_of_special_pieces_are_text_unless_asked_for(vocab):
    name = vocab.piece(vocab.mask)
    text = f"the class {name} of it"
    plain = vocab.encode(text)
    assert not vocab.special[plain].any()
    ids = vocab.encode(text, specials=True)
    assert np.count_nonzero(ids == vocab.mask) == vocab.special[ids].sum() == 1
    before, after = vocab.encode("the class"), vocab.encode(" of it")
    assert ids.tolist() == [*before, vocab.mask, *after]
    assert vocab.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert vocab.encode(name, specials=True).tolist()[-1] == vocab.mask


def test_batches_threads_and_pickles(vocab):
    expected = [vocab.encode(text).tolist() for text in TEXTS]
    assert vocab.encode_batch(TEXTS) == vocab.encode_batch(TEXTS, threads=3) == expected
    assert vocab.encode_batch([], threads=2) == []
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy.model == vocab.model and copy.path == vocab.path and copy.size == vocab.size
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: copy.encode(text).tolist(), TEXTS)) == expected
    with pytest.raises(DataError, match="text 1 has a lone surrogate"):
        vocab.encode_batch(["fine", "half \ud800"])
    with pytest.raises(DataError, match=rf"id {vocab.size} is outside the vocabulary"):
        vocab.decode([vocab.size])


def test_the_bytes_of_every_kind_are_read_back(vocab, tmp_path):
    path = tmp_path / "vocab.model"  # the name that a corpus gives to any kind
    path.write_bytes(vocab.model)
    again = load_vocab(path)
    assert (again.kind, again.sha256, again.lowercase) == (vocab.kind, vocab.sha256, False)
    assert again.encode(TEXTS[0]).tolist() == vocab.encode(TEXTS[0]).tolist()
    for name, content in vocab.files().items():
        (tmp_path / name).write_bytes(content)
    path.unlink()
    assert load_vocab(tmp_path).sha256 == vocab.sha256


def test_training_gives_the_same_bytes_in_every_process():
    code = (
        "from tests.vocabs import made\n"
        "print(made('wordpiece').sha256, made('wordpiece', lowercase=True).sha256,"
        " made('bytes').sha256)"
    )
    own = [made("wordpiece"), made("wordpiece", lowercase=True), made("bytes")]
    root = Path(__file__).parents[1]
    for threads in ("1", "5"):
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "PYTHONPATH": f"{root}:{root / 'tests'}",
        }
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert run.stdout.split() == [vocab.sha256 for vocab in own], run.stderr


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_sizes_that_cannot_be(kind):
    with pytest.raises(
        ConfigError, match=r"32000 is more than these texts can fill: at most \d+"
    ) as e:
        train_vocab(TEXTS, Vocabulary(size=32000, kind=kind))
    most = int(str(e.value).split("at most ")[1].split()[0])
    assert train_vocab(TEXTS, Vocabulary(size=most, kind=kind)).size == most
    with pytest.raises(ConfigError, match=r"20 cannot hold .*: at least \d+") as e:
        train_vocab(TEXTS, Vocabulary(size=20, kind=kind))
    least = int(str(e.value).split("at least ")[1].split()[0])
    assert train_vocab(TEXTS, Vocabulary(size=least, kind=kind)).size == least
    with pytest.raises(DataError, match="no text in the sources"):
        train_vocab([" "], Vocabulary(kind=kind))


def test_coverage_leaves_rare_characters_out():
    texts = ["aa ab ba bb " * 50 + "xx"] * 3
    full = train_vocab(texts, Vocabulary(size=11, kind="wordpiece"))
    assert full.unk not in full.encode("xx")
    some = train_vocab(texts, Vocabulary(size=9, kind="wordpiece", coverage=0.98))
    assert some.encode("xx ab").tolist()[0] == some.unk
    assert {some.piece(n) for n in range(5, 9)} == {"a", "b", "##a", "##b"}


def test_bytes_are_not_lower_cased():
    with pytest.raises(ConfigError, match="leave lowercase away"):
        train_vocab(TEXTS, Vocabulary(kind="bytes", lowercase=True))


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_lower_casing_is_part_of_the_vocabulary(kind, tmp_path):
    vocab = made(kind, lowercase=True)
    assert vocab.lowercase and vocab.decode(vocab.encode("The Cláss")) == "the class"
    (tmp_path / "v").write_bytes(vocab.model)
    assert load_vocab(tmp_path / "v").encode("É").tolist() == vocab.encode("e").tolist()
    (tmp_path / "v").write_bytes(made(kind).model)
    if kind == "wordpiece":
        with pytest.raises(ConfigError, match="v is not lower-cased: take"):
            load_vocab(tmp_path / "v", lowercase=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_and_prepares_with_any_kind(kind, tmp_path):
    text = "\n\n".join(TEXTS)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    spec = Vocabulary(size=SIZE, kind=kind)
    source = Source(f"text:{tmp_path / 'text.txt'}")
    data = Data(sources=(source,), batch=2, length=32, vocabulary=spec, held_out_share=0)
    prepared = open_data(data, cache=tmp_path / "cache")
    assert prepared.vocab.sha256 == train_vocab([text], spec).sha256
    [(corpus, _)] = prepared.train
    documents = corpus.read(np.arange(len(corpus)))
    texts = [prepared.vocab.decode(tokens) for tokens, _ in documents]
    if kind == "bytes":
        assert "".join("".join(texts).split()) == "".join(text.split())
        assert texts[0] == text[: len(texts[0])]  # line ends included
    for tokens, starts in documents:
        assert tokens.max() < SIZE and not prepared.vocab.special[tokens].any()
        assert len(starts) > 10 and starts[0] == 0


def test_commands_with_a_vocabulary_of_each_kind(tmp_path, capfd):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    source = ["--source", f"text:{tmp_path / 'text.txt'}"]
    for kind in ("wordpiece", "bytes"):
        out, folder = str(tmp_path / kind), str(tmp_path / f"{kind}-corpus")
        assert main(["vocab", *source, "--size", "700", "--kind", kind, "--out", out]) == 0
        assert f"700 {kind} pieces" in capfd.readouterr().out
        assert main(["prepare", *source, "--vocab", out, "--out", folder, "--workers", "1"]) == 0
        assert main(["show", folder, "-n", "1"]) == 0
        assert "assert" in capfd.readouterr().out
    out = str(tmp_path / "lower")
    arguments = [*source, "--size", "700", "--kind", "wordpiece", "--lowercase", "--out", out]
    assert main(["vocab", *arguments]) == 0
    assert load_vocab(out).lowercase
