"""Files that vocabularies are read from: what others publish, and what is wrong with a file."""

import io
import json
import pickle

import pytest
import sentencepiece

from flaxlm.data.sentencepiece_vocab import SentencepieceVocab
from flaxlm.data.vocab import load_vocab
from flaxlm.errors import DataError, MissingInput
from tests.vocabs import TEXTS, WORDS, made


@pytest.fixture(params=["wordpiece", "bytes", "unigram"])
def vocab(request):
    return made(request.param)


def _spm(*pieces, **options):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=400, minloglevel=3,
        user_defined_symbols=list(pieces), **options,
    )  # fmt: skip
    return written.getvalue()


def test_rules_of_published_sentencepiece_models(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(_spm("25,", "'", ","))
    plain, lower = load_vocab(path), load_vocab(path, lowercase=True)
    joined = next(n for n in range(400) if plain.piece(n) == "25,")
    comma = next(n for n in range(400) if plain.piece(n) == ",")
    assert joined in plain.encode("in 25, the")
    split = lower.encode("in 25, the").tolist()
    assert joined not in split and comma in split
    assert lower.decode(split) == "in 25, the"
    assert lower.encode("THÉ class").tolist() == plain.encode("the class").tolist()
    path.write_bytes(_spm(control_symbols="<eod>,<cls>,<sep>,<mask>"))
    documents = load_vocab(path)
    assert documents.encode("``Thé''").tolist() == documents.encode('"The"').tolist()
    assert documents.decode(documents.encode("The")) == "The"
    assert pickle.loads(pickle.dumps(documents)).rule == documents.rule == "unaccented"


def test_units_of_sentencepiece_pieces():
    vocab = SentencepieceVocab(_spm("<x", "5", "'", "!", ".com", "é", "Ab"), sentinels=2)
    units = {vocab.piece(n): unit for n, unit in enumerate(vocab.unit_starts)}
    for piece, unit in {
        "<x": True, "5": True, "'": True, "!": True, ".com": False, "é": True, "Ab": False,
        "▁the": True, "s": False, "<extra_id_1>": True,
    }.items():  # fmt: skip
        assert units[piece] == unit, piece
    words = {vocab.piece(n): start for n, start in enumerate(vocab.word_starts)}
    assert words["▁the"] and not words["5"] and not words["s"]


# A byte-level vocabulary of the 256 bytes, one merge, and an end of text.
def _byte_files(folder, *, table="vocab.json", merges="merges.txt", end="<|endoftext|>"):
    characters = sorted(made("bytes").piece(n) for n in range(4, 260))
    pieces = {character: n for n, character in enumerate(characters)} | {"Ġt": 256, end: 257}
    (folder / table).write_text(json.dumps(pieces), encoding="utf-8")
    (folder / merges).write_text("#version: 0.2\nĠ t\n", encoding="utf-8")
    return folder / table


@pytest.mark.parametrize(
    "table, merges",
    [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"),
     ("x-vocab.json", "x-merges.txt"), ("x-encoder_bpe_9.json", "x-vocab_9.bpe")],
)  # fmt: skip
def test_byte_pairs_are_read_with_the_merges_beside_them(tmp_path, table, merges):
    vocab = load_vocab(_byte_files(tmp_path, table=table, merges=merges))
    assert [vocab.piece(n) for n in vocab.encode("a to")] == ["a", "Ġt", "o"]
    assert vocab.pad == vocab.eos == vocab.bos == vocab.unk == 257
    assert vocab.mask is vocab.cls is vocab.sep is None
    assert vocab.special.nonzero()[0].tolist() == [257]
    assert vocab.encode("<|endoftext|>").max() < 256


def test_byte_pairs_with_ends_of_words(tmp_path):
    pieces = ["<unk>", "t", "h", "e", "e</w>", ".</w>", "th", "the</w>", "t</w>"]
    table = {piece: n for n, piece in enumerate(pieces)}
    (tmp_path / "vocab.json").write_text(json.dumps(table))
    (tmp_path / "merges.txt").write_text("t h\nth e</w>\n")
    vocab = load_vocab(tmp_path)
    assert (vocab.kind, vocab.unk, vocab.pad, vocab.eos) == ("endings", 0, 0, None)
    assert vocab.encode("Thé.  t Q").tolist() == [7, 5, 8, 0]
    assert vocab.decode([7, 5, 8]) == "the . t"
    (tmp_path / "v").write_bytes(vocab.model)
    assert load_vocab(tmp_path / "v").sha256 == vocab.sha256


def test_files_of_fast_tokenizers(tmp_path, vocab):
    """What the `tokenizers` package saves is the vocabulary it was made of."""
    if vocab.kind == "sentencepiece":
        model = {"type": "Unigram", "vocab": [["a", 0.0]]}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
        with pytest.raises(DataError, match=r"tokenizer\.json: the model is 'Unigram'.*\.model"):
            load_vocab(tmp_path)
        (tmp_path / "spiece.model").write_bytes(vocab.model)
    else:
        (tmp_path / "tokenizer.json").write_text(vocab._tokenizer.to_str())
    assert load_vocab(tmp_path).sha256 == vocab.sha256


def test_fast_tokenizers_that_would_give_other_ids_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    facts = json.loads(made("bytes")._tokenizer.to_str())
    path.write_text(json.dumps(facts | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(DataError, match="pre_tokenizer 'Whitespace', which flaxlm does not do"):
        load_vocab(path)
    facts = json.loads(made("wordpiece")._tokenizer.to_str())
    path.write_text(json.dumps(facts | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(DataError, match=r"the normalizer is .*Lowercase.*does not do"):
        load_vocab(path)


def test_a_folder_says_whether_it_is_lower_cased(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_vocab(tmp_path).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not load_vocab(tmp_path).lowercase
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(MissingInput, match=r"the folder has none of vocab\.model, tokenizer\.json"):
        load_vocab(tmp_path)


def _put(name, content):
    def make(folder):
        _byte_files(folder)
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _table(change):
    def make(folder):
        path = _byte_files(folder)
        table = json.loads(path.read_text(encoding="utf-8"))
        change(table)
        path.write_text(json.dumps(table), encoding="utf-8")
        return path

    return make


def _merges(content):
    def make(folder):
        path = _byte_files(folder)
        (folder / "merges.txt").write_text(content, encoding="utf-8")
        return path

    return make


def _container(kind, /, **changes):
    def make(folder):
        facts = json.loads(made(kind).model) | changes
        (folder / "vocab.model").write_text(json.dumps(facts))
        return folder / "vocab.model"

    return make


def _fast(kind, /, *where, **changes):
    def make(folder):
        facts = json.loads(made(kind)._tokenizer.to_str())
        part = facts
        for name in where:
            part = part[name]
        part |= changes
        (folder / "tokenizer.json").write_text(json.dumps(facts))
        return folder / "tokenizer.json"

    return make


def _model(change):
    def make(folder):
        (folder / "a.model").write_bytes(change(made("bpe").model))
        return folder / "a.model"

    return make


@pytest.mark.parametrize(
    "make, error, message",
    [
        (_put("vocab.txt", b""), DataError, r"vocab\.txt is empty"),
        (_put("vocab.txt", b"[UNK]\na\n\nb\n"), DataError, r"vocab\.txt:3: the line is empty"),
        (_put("vocab.txt", b"[UNK]\n\xff\n"), DataError, r"vocab\.txt:2: byte 0 is not UTF-8"),
        (_put("vocab.txt", b"[UNK]\na\nb\na\n"), DataError, r"'a' is piece 1 and .*lines 2 and 4"),
        (_put("vocab.txt", b"a\nb\n"), DataError, r"has no piece \[UNK\]"),
        (_put("vocab.json", b"{}"), DataError, r"vocab\.json is empty"),
        (_put("vocab.json", b'{"a": 0,\n,'), DataError, r"vocab\.json:2: not JSON"),
        (_put("vocab.json", b'{"a": 0, "a": 1}'), DataError, "'a' is there twice"),
        (_put("vocab.json", b'{"flaxlm": "vocabulary"}'), DataError, "damaged: 'kind' is missing"),
        (_put("vocab.json", b'{"flaxlm": "vocabulary", "kind": "x"}'), DataError, "not know: 'x'"),
        (_table(lambda t: t.update(new=7)), DataError, "both have the id 7"),
        (_table(lambda t: t.update(new=999)), DataError, r"'new' has the id 999, but 259 pieces"),
        (_table(lambda t: t.update(new="a")), DataError, r"'new' has the id 'a', but"),
        (_table(lambda t: t.update(Āx=t.pop("Ā"))), DataError, r"1 of the 256 bytes.*0x00"),
        (_merges("Ġ t\nĠ"), DataError, r"merges\.txt:2: a merge is two pieces"),
        (_merges("#version\nĠ t\nĠ zz"), DataError, r"merges\.txt:3: 'zz' is not a piece of vocab"),
        (_merges("a b"), DataError, r"merges\.txt:1: 'ab' is not a piece"),
        (_merges(""), DataError, r"merges\.txt is empty"),
        (lambda f: _byte_files(f).with_name("merges.txt"), DataError, "holds merges: name the"),
        # Found by fuzzing.
        (_put("vocab.json", b'{"a": ' + b"9" * 5000 + b"}"), DataError, "not JSON that can"),
        (_put("vocab.json", b'{"a": ' * 50_000), DataError, "not JSON that can"),
        (_put("vocab.json", b'{"' + b"a" * 5000 + b'": 7}'), DataError, r"^.{0,200}has the id 7"),
        (_put("vocab.json", b'{"\\ud800": 0}'), DataError, r"'\\ud800' is no piece"),
        (_put("vocab.json", b'{"": 0}'), DataError, "'' is no piece"),
        (_container("wordpiece", pieces="[UNK]"), DataError, "'pieces' is a str, not a list"),
        (_container("wordpiece", pieces=["[UNK]", 3]), DataError, "3 is no piece"),
        (_container("wordpiece", lowercase="no"), DataError, "'lowercase' is a str, not a bool"),
        (_container("bytes", merges=["a"]), DataError, "merge 'a' is not of two pieces"),
        (_container("bytes", merges=[["a", "b"]]), DataError, "is no piece"),
        (_container("bytes", prefix_space=None), DataError, "'prefix_space' is a NoneType"),
        (_container("bytes", kind="endings"), DataError, "of the kind bytes, not endings"),
        (_container("bytes", kind=["bytes"]), DataError, "'kind' is a list"),
        (_fast("wordpiece", "model", vocab=[["[UNK]", 0]]), DataError, "damaged"),
        (_fast("wordpiece", "model", unk_token="[PAD]"), DataError, r"unknown word is not \[UNK\]"),
        (_fast("wordpiece", "model", unk_token=3), DataError, "damaged: "),
        (_fast("wordpiece", added_tokens=[{"id": 0}]), DataError, "damaged: "),
        (_fast("bytes", "model", dropout=0.5), DataError, "dropout is 0.5, which flaxlm does not"),
        (_fast("bytes", "model", continuing_subword_prefix="##"), DataError, "subword_prefix is"),
        (_fast("bytes", "model", merges=[["a"]]), DataError, "damaged: "),
        (_fast("bytes", "pre_tokenizer", add_prefix_space=3), DataError, "damaged: "),
        (_model(lambda m: m.replace(b"<cls>", b"<cl\xff>")), DataError, "or a damaged one"),
        (_model(lambda m: m[: len(m) // 2]), DataError, "or a damaged one"),
        (lambda f: f / "none.txt", MissingInput, r"vocabulary .*none\.txt: No such file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(make, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        load_vocab(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_merges(tmp_path):
    path = _byte_files(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(MissingInput, match=r"its merges, merges\.txt or vocab\.bpe, are not there"):
        load_vocab(path)


def test_a_brace_can_be_the_first_piece(tmp_path):
    """Found by fuzzing: it was read as JSON."""
    (tmp_path / "vocab.txt").write_text("{\n[UNK]\na")
    assert load_vocab(tmp_path / "vocab.txt").encode("{ a").tolist() == [0, 2]


def test_a_vocabulary_without_named_pieces_has_no_names_in_a_text(tmp_path):
    """Found by fuzzing: a pattern of no names is found everywhere."""
    vocab = load_vocab(_byte_files(tmp_path, end="end"))
    assert not vocab._ids
    assert vocab.encode("a b", specials=True).tolist() == vocab.encode("a b").tolist()
