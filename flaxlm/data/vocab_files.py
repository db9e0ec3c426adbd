"""Vocabularies as files: what others publish, and the container that a corpus keeps.

Read are a sentencepiece .model, a vocab.txt (one WordPiece a line), a vocab.json or encoder.json
with its merges beside it, a tokenizer.json (WordPiece or BPE inside), our own container (JSON), and
folders that hold any of them. What a tokenizer.json asks for and we would do otherwise is refused.
"""

import base64
import binascii
import json
from pathlib import Path

from flaxlm.data.byte_bpe import BpeVocab
from flaxlm.data.sentencepiece_vocab import RULES, SentencepieceVocab
from flaxlm.data.vocab_base import Vocab
from flaxlm.data.wordpiece import LONGEST, WordPieceVocab
from flaxlm.errors import ConfigError, DataError, MissingInput

# Files of a folder, the first that is there and is of a kind that can be read.
_IN_FOLDERS = (
    "vocab.model", "tokenizer.json", "spiece.model", "spm.model", "tokenizer.model",
    "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "encoder.json",
)  # fmt: skip


def read_vocab(path: Path, *, sentinels: int, lowercase: bool) -> Vocab:
    """See `flaxlm.data.vocab.load_vocab`."""
    if path.is_dir():
        return _read_folder(path, sentinels, lowercase)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingInput(f"vocabulary {path}: {error.strerror}") from error
    name = path.name
    if content.lstrip()[:1] == b"{":
        facts = _json(content, path)
        if facts.get("flaxlm") == "vocabulary":
            vocab = _of_container(facts, sentinels, str(path))
        elif isinstance(facts.get("model"), dict):
            vocab = _of_fast_file(facts, path)
        else:
            vocab = _of_table(facts, path)
        return _agreed(vocab, lowercase)
    if path.suffix in (".txt", "") and not name.startswith("merges"):
        return WordPieceVocab(_lines(content, path), lowercase=lowercase, path=str(path))
    if path.suffix in (".bpe", ".txt"):
        raise DataError(f"{path} holds merges: name the vocab.json or encoder.json beside it")
    rule = "lowercase" if lowercase else None
    return SentencepieceVocab(content, sentinels=sentinels, path=str(path), rule=rule)


def _read_folder(folder: Path, sentinels: int, lowercase: bool) -> Vocab:
    settings = folder / "tokenizer_config.json"
    known = _json(settings.read_bytes(), settings) if settings.exists() else {}
    lowercase = lowercase or known.get("do_lower_case") is True
    found = [folder / name for name in _IN_FOLDERS if (folder / name).exists()]
    for path in found:
        others = [other for other in found if other != path]
        if path.name == "tokenizer.json" and any(other.suffix == ".model" for other in others):
            continue  # the .model is the original
        return read_vocab(path, sentinels=sentinels, lowercase=lowercase)
    raise MissingInput(f"vocabulary {folder}: the folder has none of {', '.join(_IN_FOLDERS)}")


def _agreed(vocab: Vocab, lowercase: bool) -> Vocab:
    if lowercase and not vocab.lowercase:
        raise ConfigError(
            f"the vocabulary {vocab.path} is not lower-cased: take data.vocabulary.lowercase back, "
            "or name a file that leaves that open, as vocab.txt and .model do"
        )
    return vocab


def _json(content: bytes, path: Path) -> dict:
    def once(pairs):
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for n, name in enumerate(names) if name in names[:n])
            raise DataError(f"{path}: {twice!r} is there twice")
        return table

    try:
        facts = json.loads(content, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    if not isinstance(facts, dict):
        raise DataError(f"{path} is no vocabulary: JSON, but not a table")
    return facts


def _lines(content: bytes, path: Path) -> list[str]:
    lines = content.removesuffix(b"\n").split(b"\n")
    pieces = []
    for number, line in enumerate(lines, 1):
        try:
            piece = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: byte {error.start} is not UTF-8") from error
        if not piece:
            raise DataError(
                f"{path} is empty" if len(lines) == 1 else f"{path}:{number}: the line is empty"
            )
        pieces.append(piece)
    return pieces


def _of_container(facts: dict, sentinels: int, path: str) -> Vocab:
    try:
        kind = facts["kind"]
        if kind == "wordpiece":
            return WordPieceVocab(facts["pieces"], lowercase=facts["lowercase"], path=path)
        if kind in ("bytes", "endings"):
            merges = [tuple(pair.split(" ")) for pair in facts["merges"]]
            settings = {} if kind == "endings" else {"prefix_space": facts["prefix_space"]}
            return BpeVocab(facts["pieces"], merges, path=path, **settings)
        if kind == "sentencepiece" and facts["rule"] in RULES:
            proto = base64.b64decode(facts["proto"], validate=True)
            return SentencepieceVocab(proto, sentinels=sentinels, path=path, rule=facts["rule"])
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    raise DataError(f"{path} is of a kind that this version does not know: {kind!r}")


def _of_table(table: dict, path: Path) -> Vocab:
    """A vocab.json: {piece: id}, with the merges in a file beside it."""
    pieces = _by_id(table, path)
    stem = path.stem
    names = [
        f"{stem.replace('vocab', 'merges')}.txt",
        f"{stem.replace('encoder_bpe', 'vocab').replace('encoder', 'vocab')}.bpe",
    ]
    beside = next((path.with_name(n) for n in names if path.with_name(n).exists()), None)
    if beside is None:
        raise MissingInput(f"vocabulary {path}: its merges, {' or '.join(names)}, are not there")
    lines = _lines(beside.read_bytes(), beside)
    header = int(lines[0].startswith("#version"))
    merges = []
    for number, line in enumerate(lines[header:], header + 1):
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair):
            raise DataError(f"{beside}:{number}: a merge is two pieces with a space between them")
        for part in (*pair, "".join(pair)):
            if part not in table:
                raise DataError(f"{beside}:{number}: {part!r} is not a piece of {path.name}")
        merges.append(pair)
    return BpeVocab(pieces, merges, path=str(path))


def _by_id(table: dict, path: Path) -> list[str]:
    """The pieces of {piece: id}, whose ids are 0, 1, 2, ..."""
    if not table:
        raise DataError(f"{path} is empty: no piece")
    pieces: list[str | None] = [None] * len(table)
    for piece, at in table.items():
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(table):
            raise DataError(
                f"{path}: {piece!r} has the id {at!r}, but {len(table)} pieces have the ids "
                f"0 to {len(table) - 1}"
            )
        if pieces[at] is not None:
            raise DataError(f"{path}: {pieces[at]!r} and {piece!r} both have the id {at}")
        pieces[at] = piece
    return pieces


def _of_fast_file(facts: dict, path: Path) -> Vocab:
    """A tokenizer.json. Special symbols are known by their names, not by its post-processor."""

    def refuse(what: str, instead: str) -> DataError:
        return DataError(f"{path}: {what}, which flaxlm does not do; {instead}")

    def part(name: str) -> dict:
        return facts.get(name) or {}

    model, kind = facts["model"], facts["model"].get("type")
    if kind not in ("WordPiece", "BPE"):
        raise refuse(f"the model is {kind}", "name the sentencepiece .model that it was made of")
    table = dict(model["vocab"])
    for added in facts.get("added_tokens") or []:
        table.setdefault(added["content"], added["id"])
    pieces = _by_id(table, path)
    normalizer, cutter = part("normalizer"), part("pre_tokenizer")
    words_alone = cutter.get("type") == "BertPreTokenizer"
    if normalizer:
        lowercase = normalizer.get("lowercase")
        as_ours = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        usual = all(normalizer.get(name) == value for name, value in as_ours.items())
        if not usual or normalizer.get("strip_accents") not in (None, lowercase):
            raise refuse(
                f"the normalizer is {json.dumps(normalizer)[:80]}", "there is no substitute"
            )
    if kind == "WordPiece":
        longest, mark = model.get("max_input_chars_per_word"), model["continuing_subword_prefix"]
        if not (normalizer and words_alone and mark == "##" and longest == LONGEST):
            raise refuse(
                f"pre_tokenizer {cutter.get('type')}, prefix {mark!r}, {longest} characters a word",
                f"known: BertPreTokenizer, '##', {LONGEST}",
            )
        return WordPieceVocab(pieces, lowercase=lowercase, path=str(path))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("end_of_word_suffix"):
        if not (normalizer and lowercase and words_alone):
            raise refuse("words are cut in another way", "name its vocab.json, merges beside it")
        return BpeVocab(pieces, merges, path=str(path))
    plain = cutter.get("type") == "ByteLevel" and cutter.get("use_regex", True) is True
    if normalizer or not plain or model.get("ignore_merges") or model.get("byte_fallback"):
        raise refuse(f"pre_tokenizer {cutter.get('type')}", "known: ByteLevel as in vocab.json")
    return BpeVocab(pieces, merges, path=str(path), prefix_space=cutter["add_prefix_space"])
