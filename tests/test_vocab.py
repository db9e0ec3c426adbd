"""Sentencepiece vocabularies: layout, encoding, training, and models that others made."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.data import vocab_train
from flaxlm.data.chunk import tokenise
from flaxlm.data.sentencepiece_vocab import SentencepieceVocab
from flaxlm.data.sentences import sentences
from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import KOREAN, load_vocab, train_vocab
from flaxlm.errors import ConfigError, DataError, MissingInput
from tests.vocabs import TEXTS, sample_data

SIZE = 800
WORDS = "the class of a function is what its method returns when called".split()


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def vocab(request):
    return train_vocab(TEXTS, Vocabulary(size=SIZE, kind=request.param, sentinels=10))


def test_layout(vocab):
    assert vocab.pieces == SIZE and vocab.size == SIZE + 10
    ids = vocab.pad, vocab.eos, vocab.unk, vocab.bos, vocab.cls, vocab.sep, vocab.mask
    assert ids == (0, 1, 2, 3, 4, 5, 6)
    assert [vocab.piece(n) for n in range(7)] == [
        *("<pad>", "</s>", "<unk>", "<s>", "<cls>", "<sep>", "<mask>")
    ]
    assert vocab.sentinels.dtype == np.int32
    assert vocab.sentinels.tolist() == list(range(SIZE + 9, SIZE - 1, -1))
    assert vocab.piece(SIZE + 9) == "<extra_id_0>" and vocab.piece(SIZE) == "<extra_id_9>"
    vocab.require("pad", "eos", "unk", "bos", "cls", "sep", "mask", "sentinels")


def test_encode_and_decode(vocab):
    ids = vocab.encode("a class is called.")
    assert ids.dtype == np.int32 and ids.ndim == 1 and vocab.eos not in ids
    assert vocab.decode(ids) == "a class is called."
    assert vocab.encode("").tolist() == []
    assert vocab.decode([]) == ""
    with pytest.raises(DataError, match="text 1 has a lone surrogate"):
        vocab.encode_batch(["fine", "half \ud800"])
    texts = ["the class", "", "over two methods"]
    for threads in (1, 2):
        batch = vocab.encode_batch(texts, threads=threads)
        assert batch == [vocab.encode(t).tolist() for t in texts]


def test_decode_spells_sentinels_and_loses_no_space(vocab):
    def ids(text):
        return vocab.encode(text).tolist()

    first, second = vocab.sentinels[:2].tolist()
    joined = [first, *ids("the class"), second, *ids("method"), vocab.eos, vocab.pad, vocab.pad]
    assert vocab.decode(joined) == "<extra_id_0> the class<extra_id_1> method"
    inside = next(n for n in range(263, SIZE) if not vocab.piece(n).startswith("▁"))
    assert vocab.decode([first, inside]) == "<extra_id_0>" + vocab.piece(inside)
    assert vocab.decode([vocab.bos, *ids("the"), vocab.mask, vocab.sep]) == "the<mask><sep>"
    for wrong in (-1, vocab.size):
        with pytest.raises(
            DataError, match=rf"token id {wrong} is outside the vocabulary \[0, 810"
        ):
            vocab.decode([1, wrong])


def test_the_names_of_special_pieces_are_ordinary_text(vocab):
    for text in ("<mask>", "<extra_id_0>", "</s>", "a <pad> b"):
        ids = vocab.encode(text)
        assert ids.min() > vocab.mask and ids.max() < vocab.pieces
        assert vocab.decode(ids) == text


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=60))
def test_nothing_is_unknown_and_normalised_text_survives(text):
    vocab = _unigram()
    ids = vocab.encode(text)
    assert vocab.unk not in ids
    once = vocab.decode(ids)
    assert vocab.decode(vocab.encode(once)) == once


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*WORDS, "Mr.", "e.g.", "U.S.", "Yes!", "end.", '"end."', "그렇다.", "왜?"]
            ),
            st.sampled_from(
                [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\u00a0", "\u2003", "\x85"]
            ),
            st.text(max_size=3),
        ),
        max_size=30,
    )
)
def test_sentences_make_the_tokens_of_the_document(parts):
    vocab = _unigram()
    text = "".join(parts)
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    [(tokens, starts)] = tokenise([text], vocab)
    assert tokens.tolist() == vocab.encode(text).tolist()
    if len(tokens):
        assert starts[0] == 0 and (np.diff(starts, append=len(tokens)) > 0).all()


def test_sentences():
    text = (
        'Dr. Kim met J. Smith at 3.5 p.m. today. Did he? "Yes!" she said. (It is so.) Then\n'
        "more of it, e.g. this.\n\nA title\n \nThe end… 끝났다. 정말?  네!\n\n"
    )
    assert sentences(text) == [
        "Dr. Kim met J. Smith at 3.5 p.m. today.",
        "Did he?",
        '"Yes!" she said.',
        "(It is so.)",
        "Then\nmore of it, e.g. this.",
        "A title",
        "The end…",
        "끝났다.",
        "정말?",
        "네!",
    ]
    assert sentences(" \n\n ") == sentences("") == []


def test_training_twice_gives_the_same_bytes(vocab):
    kind = "unigram" if vocab.sha256 == _unigram().sha256 else "bpe"
    again = train_vocab(iter(TEXTS), Vocabulary(size=SIZE, kind=kind, sentinels=10))
    assert again.model == vocab.model and again.sha256 == vocab.sha256


def test_pickle_and_threads(vocab):
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy.sha256 == vocab.sha256 and copy.size == vocab.size
    expected = [vocab.encode(t).tolist() for t in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda t: copy.encode(t).tolist(), TEXTS)) == expected


@pytest.mark.parametrize(
    "size, texts, error, message",
    [
        (32000, TEXTS, ConfigError, r"32000 is more than these texts can fill: at most \d+ \(data"),
        (280, TEXTS, ConfigError, r"280 cannot hold the characters of these texts: at least 3\d\d"),
        (5, TEXTS, ConfigError, "5 cannot hold"),
        (SIZE, [], DataError, "there is no text in the sources"),
        (SIZE, [" \n "], DataError, "there is no text in the sources"),
    ],
)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sizes_that_cannot_be(kind, size, texts, error, message, capfd):
    with pytest.raises(error, match=message) as caught:
        train_vocab(texts, Vocabulary(size=size, kind=kind))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_the_limit_in_the_message_can_be_used():
    with pytest.raises(ConfigError) as caught:
        train_vocab(TEXTS, Vocabulary(size=32000))
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert train_vocab(TEXTS, Vocabulary(size=most)).pieces == most


def test_unknown_kind():
    with pytest.raises(ConfigError, match="'wordpeace': did you mean wordpiece"):
        train_vocab(TEXTS, Vocabulary(kind="wordpeace"))


def test_long_sentences_are_not_skipped():
    # One line far beyond sentencepiece's own limit of 4192 bytes is all there is.
    vocab = train_vocab([" ".join(TEXTS)], Vocabulary(size=SIZE, kind="bpe"))
    assert len(vocab.encode("class method")) <= 4


def test_sampling_is_uniform_and_bounded(monkeypatch):
    monkeypatch.setattr(vocab_train, "_SAMPLE", 200)
    monkeypatch.setattr(vocab_train, "_SEARCHED", 2000)
    read = []

    def texts():
        for n in range(10_000):
            read.append(n)
            yield f"{n}"

    kept = np.array([int(t) for t in vocab_train._sample(texts())])
    assert len(kept) == len(set(kept.tolist())) == 200
    assert len(read) == 2000
    assert 850 < kept.mean() < 1150  # 1000, with a standard error of 41


def test_korean():
    syllables = [chr(0xAC00 + 37 * n) for n in range(250)]
    texts = [
        " ".join("".join(syllables[(n * 7 + k * j) % 250] for j in (1, 2)) for k in range(1, 9))
        for n in range(400)
    ]
    korean = train_vocab(texts, replace(KOREAN, size=530))
    text = texts[3] + " 한국어 漢字 😀"
    assert korean.decode(korean.encode(text)) == text
    assert len(korean.encode(texts[3])) <= 24


def test_files_that_are_not_models(tmp_path):
    with pytest.raises(MissingInput, match=r"vocabulary .*none\.model: No such file"):
        load_vocab(tmp_path / "none.model")
    for content in (b"", b"certainly not a model"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.model is .*not a sentencepiece model"):
            load_vocab(tmp_path / "bad.model")


def test_a_model_without_some_pieces_says_so(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=400, minloglevel=3,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    path = tmp_path / "spiece.model"
    path.write_bytes(model.getvalue())
    vocab = load_vocab(path)
    assert (vocab.pad, vocab.eos, vocab.unk) == (0, 1, 2)
    assert vocab.bos is vocab.cls is vocab.sep is vocab.mask is None
    vocab.require("pad", "eos", "sentinels")
    with pytest.raises(ConfigError, match=r"spiece\.model has no mask, cls, which the objective"):
        vocab.require("pad", "mask", "cls")
    with pytest.raises(ConfigError, match="has no sentinels"):
        load_vocab(path, sentinels=0).require("sentinels")


def test_a_model_with_sentinels_of_its_own_keeps_them():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=400, minloglevel=3,
        user_defined_symbols=[f"▁<extra_id_{k}>" for k in (2, 1, 0)],
    )  # fmt: skip
    vocab = SentencepieceVocab(model.getvalue(), sentinels=3)
    assert vocab.size == vocab.pieces == 400
    assert vocab.decode(vocab.sentinels) == "<extra_id_0><extra_id_1><extra_id_2>"
    assert pickle.loads(pickle.dumps(vocab)).sentinels.tolist() == vocab.sentinels.tolist()


def test_a_published_t5_style_model():
    vocab = load_vocab(sample_data("tokenizers", "seqio-t5-test-sentencepiece.model"))
    assert (vocab.pad, vocab.eos, vocab.unk, vocab.bos, vocab.mask) == (0, 1, 2, None, None)
    assert vocab.sentinels[0] == vocab.pieces + 99 and vocab.sentinels[99] == vocab.pieces
    assert vocab.encode("this is a test").tolist() == _reference(vocab.path, "this is a test")


def test_a_published_albert_model():
    vocab = load_vocab(sample_data("tokenizers", "albert-30k-clean.model"), sentinels=0)
    assert (vocab.pad, vocab.cls, vocab.sep, vocab.mask) == (0, 2, 3, 4)
    assert vocab.size == vocab.pieces == 30000


def _reference(path, text):
    return sentencepiece.SentencePieceProcessor(model_file=path).encode(text)


_trained = {}


def _unigram():
    if not _trained:
        _trained["unigram"] = train_vocab(TEXTS, Vocabulary(size=SIZE, sentinels=10))
    return _trained["unigram"]
