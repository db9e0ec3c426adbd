"""Fuzzing of vocabulary files: whatever is in them, they become a vocabulary that gives the ids of
a straightforward reading, or are refused with one line.
"""

import base64
import functools
import io
import itertools
import json
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from flaxlm.data.byte_bpe import BYTES
from flaxlm.data.vocab import load_vocab
from flaxlm.data.vocab_base import Vocab
from tests import fuzz
from tests.vocabs import TEXTS, WORDS, made

SAMPLES = [
    "",
    " ",
    "unaffable, in É",
    "<mask>[MASK]</s>",
    "한국어\x00\t😀 \u0301e",
    "e" * 120,
    "in in",
]
NAMES = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<unk>", "<pad>", "<mask>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def loaded(path, **options) -> Vocab | None:
    """The vocabulary at `path`, after it did all that a vocabulary does; None if it is refused."""
    with fuzz.refused() as errors:
        vocab = load_vocab(path, **options)
    if errors:
        assert errors[0].code in (65, 66, 78), errors
        return None
    ids = vocab.encode_batch(SAMPLES)
    assert all(0 <= at < vocab.size for row in ids for at in row)
    for row in ids:
        assert isinstance(vocab.decode(row), str)
    assert isinstance(vocab.decode(range(vocab.size)), str)
    assert (
        vocab.special.shape == vocab.word_starts.shape == vocab.unit_starts.shape == (vocab.size,)
    )
    vocab.encode("x [MASK] <mask> y", specials=True)
    copy = pickle.loads(pickle.dumps(vocab))
    assert copy.sha256 == vocab.sha256 and copy.encode_batch(SAMPLES) == ids
    return vocab


def flipped(data, content: bytes, most: int = 4) -> bytes:
    """`content` with some bits flipped, bytes replaced, parts removed or doubled."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, most))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "flip", "byte", "remove", "double", "cut"]))
        if not content or kind == "byte":
            content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=3))
        elif kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        else:
            stop = at + data.draw(st.integers(1, 12))
            content[at:stop] = b"" if kind == "remove" else content[at:stop] * 2
    return bytes(content)


# WordPiece

PIECE = st.one_of(
    st.sampled_from(
        [*WORDS, *NAMES, "##", "#", " ", "a b", "##b", "\ufeffa", "{", "{}", "é", "e\u0301"]
    ),
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=4),
)


def longest_match(pieces: list[str], word: str) -> list[int]:
    """Ids of a word, the way WordPiece is defined."""
    found, at = [], 0
    while at < len(word):
        spelling = [("##" if at else "") + word[at:end] for end in range(len(word), at, -1)]
        fits = next((piece for piece in spelling if piece in pieces), None)
        if fits is None:
            return [pieces.index("[UNK]")]
        found.append(pieces.index(fits))
        at += len(fits) - (2 if at else 0)
    return found


@fuzz.inputs(300)
@given(st.lists(PIECE, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.data())
def test_any_list_of_pieces_is_a_wordpiece_vocabulary_or_refused(folder, pieces, end, unk, data):
    pieces = [*pieces, "[UNK]"] if unk else pieces
    content = "".join(piece + end for piece in pieces).encode()
    damaged = data.draw(st.integers(0, 3)) == 0
    if damaged:
        content = flipped(data, content, most=2)
    path = folder / "vocab.txt"
    path.write_bytes(content)
    vocab = loaded(path)
    if vocab is None:
        lone = all("\n" not in piece and piece[-1] != "\r" for piece in pieces)
        assert damaged or not (lone and "[UNK]" in pieces and len({*pieces}) == len(pieces))
        return
    lines = [line.removesuffix(b"\r").decode() for line in content.split(b"\n")]
    lines = lines[:-1] if not lines[-1] else lines
    assert [vocab.piece(at) for at in range(vocab.size)] == lines
    assert len({*lines}) == len(lines) and "[UNK]" in lines and "" not in lines
    for word in ("unaffable", "in", "e", "unin", "xyz"):
        assert vocab.encode(word).tolist() == longest_match(lines, word)


# Byte pairs


def merged(pieces: list[str], merges: list, word: str) -> list[int]:
    """Ids of a word without a space, the way byte pairs are defined: the first merge of the list
    that occurs is made, wherever it does, until none occurs.
    """
    parts = [next(c for c, byte in BYTES.items() if byte == value) for value in word.encode()]
    ranks = {}
    for rank, pair in enumerate(merges):
        ranks[tuple(pair)] = rank  # of a pair that is there twice the last counts
    while pairs := [(ranks[p], p) for p in itertools.pairwise(parts) if p in ranks]:
        pair, at, joined = min(pairs)[1], 0, []
        while at < len(parts):
            width = 2 if tuple(parts[at : at + 2]) == pair else 1
            joined.append("".join(parts[at : at + width]))
            at += width
        parts = joined
    return [pieces.index(part) for part in parts]


@st.composite
def byte_pairs(draw):
    """(pieces, merges) nearly as a byte-level vocabulary has them."""
    pieces, merges = [*BYTES], []
    for _ in range(draw(st.integers(0, 8))):
        pair = draw(st.tuples(*[st.sampled_from([*"abin", *pieces[256:]])] * 2))
        merges.append(pair)
        if "".join(pair) not in pieces and draw(st.integers(0, 9)):
            pieces.append("".join(pair))
    pieces += [name for name in draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))]
    return pieces, merges


@fuzz.inputs(150)
@given(byte_pairs(), st.data())
def test_any_byte_pairs_are_a_vocabulary_or_refused(folder, pairs, data):
    pieces, merges = pairs
    table = {piece: at for at, piece in enumerate(pieces)}
    if data.draw(st.integers(0, 3)) == 0:
        key = data.draw(st.sampled_from(pieces))
        table[key] = data.draw(fuzz.JSON)
    text = "".join(f"{left} {right}\n" for left, right in merges)
    text = data.draw(st.sampled_from(["", "#version: 0.2\n"])) + text
    path, beside = folder / "vocab.json", folder / "merges.txt"
    for file, content in ((path, json.dumps(table).encode()), (beside, text.encode())):
        damaged = data.draw(st.integers(0, 4)) == 0
        file.write_bytes(flipped(data, content, most=2) if damaged else content)
    vocab = loaded(path)
    if vocab is None:
        return
    found = json.loads(path.read_bytes())
    spelt = sorted(found, key=found.get)
    assert [vocab.piece(at) for at in range(vocab.size)] == spelt
    lines = [line.removesuffix(b"\r").decode() for line in beside.read_bytes().split(b"\n")]
    lines = lines[:-1] if not lines[-1] else lines
    pairs = [
        line.split(" ") for line in lines if not line.startswith("#version") or line != lines[0]
    ]
    for word in ("ab", "banana", "inbainabb", "é"):
        assert vocab.encode(word).tolist() == merged(spelt, pairs, word)
    assert all(vocab.decode(vocab.encode(text)) == text for text in SAMPLES)


# Files of one JSON tree


JSON_FILES = {
    "wordpiece": lambda: json.loads(made("wordpiece").model),
    "bytes": lambda: json.loads(made("bytes").model),
    "sentencepiece": lambda: {
        "flaxlm": "vocabulary",
        "kind": "sentencepiece",
        "rule": "lowercase",
        "proto": base64.b64encode(made("bpe").model).decode(),
    },
}


@pytest.mark.parametrize("kind", JSON_FILES)
@fuzz.inputs(60)
@given(data=st.data())
def test_any_container_is_a_vocabulary_or_refused(folder, kind, data):
    tree = data.draw(fuzz.damaged(JSON_FILES[kind]()))
    path = folder / "vocab.model"
    path.write_text(json.dumps(tree))
    vocab = loaded(path)
    if vocab is not None and "pieces" in tree:
        assert [vocab.piece(at) for at in range(vocab.pieces)] == tree["pieces"]


SMALL = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "[PAD]", "special": True}],
    "normalizer": {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": None,
    "decoder": {"type": "WordPiece"},
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {piece: at for at, piece in enumerate(WORDS)},
    },
}  # fmt: skip
BYTES_FILE = {
    "added_tokens": None,
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {
        "type": "BPE", "merges": ["i n", ["a", "b"]],
        "vocab": {piece: at for at, piece in enumerate([*BYTES, "in", "ab"])},
    },
}  # fmt: skip


@pytest.mark.parametrize("tree", [SMALL, BYTES_FILE], ids=["WordPiece", "BPE"])
@fuzz.inputs(150)
@given(data=st.data())
def test_any_tokenizer_json_is_a_vocabulary_or_refused(folder, tree, data):
    tree = data.draw(fuzz.damaged(tree))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tree))
    vocab = loaded(path)
    if vocab is None:
        return
    theirs = sentence_ids(path)
    if theirs is not None:
        texts = ["unaffable in", "banana e", "ab"]
        assert [vocab.encode(text).tolist() for text in texts] == theirs(texts)


def sentence_ids(path):
    """What the package that the file is made for makes of texts; None if it refuses the file."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception:  # it has one class of exceptions, which is this
        return None
    return lambda texts: [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


@fuzz.inputs(200)
@given(st.data())
def test_any_settings_of_a_folder_are_read_or_refused(folder, data):
    inside = folder / "settings"
    inside.mkdir(exist_ok=True)
    (inside / "vocab.txt").write_text("\n".join(WORDS))
    content = json.dumps(
        {"do_lower_case": data.draw(fuzz.JSON), "x": data.draw(fuzz.JSON)}
    ).encode()
    if data.draw(st.booleans()):
        content = flipped(data, content)
    (inside / "tokenizer_config.json").write_bytes(content)
    vocab = loaded(inside)
    if vocab is not None:
        assert vocab.lowercase == (json.loads(content).get("do_lower_case") is True)


# Sentencepiece


@functools.cache
def model_bytes(kind: str) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:8]), model_writer=written, vocab_size=200, model_type=kind,
        hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    return written.getvalue()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@fuzz.inputs(150)
@given(data=st.data())
def test_any_damaged_sentencepiece_model_is_a_vocabulary_or_refused(folder, kind, data):
    content = flipped(data, model_bytes(kind))
    path = folder / "spiece.model"
    path.write_bytes(content)
    vocab = loaded(path, sentinels=data.draw(st.sampled_from([0, 3])))
    if vocab is None:
        return
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert vocab.pieces == theirs.get_piece_size()
    if vocab.rule == "plain":
        assert vocab.encode_batch(SAMPLES) == theirs.encode(SAMPLES)


@fuzz.inputs(200)
@given(st.binary(max_size=40), st.sampled_from(["a.model", "vocab.txt", "vocab.json", "vocab"]))
def test_any_bytes_are_a_vocabulary_or_refused(folder, content, name):
    inside = folder / "bytes"
    inside.mkdir(exist_ok=True)
    (inside / name).write_bytes(content)
    vocab = loaded(inside / name)
    assert vocab is None or np.isfinite(vocab.size)
