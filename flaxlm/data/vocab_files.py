"""Vocabularies as files: what others publish, and the container that a corpus keeps.

Read are a sentencepiece .model, a vocab.txt (one WordPiece a line), a vocab.json or encoder.json
with its merges beside it, a tokenizer.json (WordPiece or BPE inside), our own container (JSON), and
folders that hold any of them. What a tokenizer.json asks for and we would do otherwise is refused.
"""

import base64
import json
from pathlib import Path

from tokenizers import Tokenizer

from flaxlm.data.byte_bpe import END, BpeVocab
from flaxlm.data.sentencepiece_vocab import RULES, SentencepieceVocab
from flaxlm.data.vocab_base import Vocab, short
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
    if content.lstrip()[:1] == b"{" and path.suffix != ".txt":  # whose first piece may be a brace
        facts = _json(content, path)
        if facts.get("flaxlm") == "vocabulary":
            vocab = _of_container(facts, sentinels, str(path))
        elif isinstance(facts.get("model"), dict):
            vocab = _of_fast_file(content, facts, path)
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
            raise DataError(f"{path}: {short(twice)} is there twice")
        return table

    try:
        facts = json.loads(content, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, deep nesting
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not JSON that can be read: {error}") from error
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
    def get(name: str, form: type):
        return _get(facts, name, form, path)

    kind = get("kind", str)
    if kind == "wordpiece":
        pieces, lowercase = _strings(get("pieces", list), path), get("lowercase", bool)
        return WordPieceVocab(pieces, lowercase=lowercase, path=path)
    if kind in ("bytes", "endings"):
        pieces, merges = (_strings(get(name, list), path) for name in ("pieces", "merges"))
        settings = {} if kind == "endings" else {"prefix_space": get("prefix_space", bool)}
        vocab = BpeVocab(pieces, [_pair(merge, path) for merge in merges], path=path, **settings)
        if vocab.kind == kind:
            return vocab
        raise DataError(f"{path} is damaged: its pieces are of the kind {vocab.kind}, not {kind}")
    if kind == "sentencepiece" and get("rule", str) in RULES:
        try:
            proto = base64.b64decode(get("proto", str), validate=True)
        except ValueError as error:
            raise DataError(f"{path} is damaged: 'proto' is not base64") from error
        return SentencepieceVocab(proto, sentinels=sentinels, path=path, rule=facts["rule"])
    raise DataError(f"{path} is of a kind that this version does not know: {short(kind)}")


def _get(facts: dict, name: str, form: type, path):
    """facts[name], which has to be there and of that type."""
    if name not in facts:
        raise DataError(f"{path} is damaged: {name!r} is missing")
    if not isinstance(facts[name], form):
        kind = type(facts[name]).__name__
        raise DataError(f"{path} is damaged: {name!r} is a {kind}, not a {form.__name__}")
    return facts[name]


def _strings(values: list, path) -> list[str]:
    for value in values:
        if not isinstance(value, str) or not value or not _is_text(value):
            raise DataError(f"{path} is damaged: {short(value)} is no piece")
    return values


def _is_text(piece: str) -> bool:
    """Whether there are no halves of characters, which JSON can spell."""
    return not any("\ud800" <= character <= "\udfff" for character in piece)


def _pair(merge, path) -> tuple[str, str]:
    """A merge, which is written "left right" or ["left", "right"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(_strings(parts, path)):
        raise DataError(f"{path} is damaged: the merge {short(merge)} is not of two pieces")
    return parts[0], parts[1]


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
                raise DataError(f"{beside}:{number}: {short(part)} is not a piece of {path.name}")
        merges.append(pair)
    return BpeVocab(pieces, merges, path=str(path))


def _by_id(table: dict, path: Path) -> list[str]:
    """The pieces of {piece: id}, whose ids are 0, 1, 2, ..."""
    if not table:
        raise DataError(f"{path} is empty: no piece")
    _strings(list(table), path)
    pieces: list[str | None] = [None] * len(table)
    for piece, at in table.items():
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(table):
            raise DataError(
                f"{path}: {short(piece)} has the id {short(at)}, but {len(table)} pieces have ids "
                f"0 to {len(table) - 1}"
            )
        if pieces[at] is not None:
            both = f"{short(pieces[at])} and {short(piece)}"
            raise DataError(f"{path}: {both} both have the id {at}")
        pieces[at] = piece
    return pieces


def _of_fast_file(content: bytes, facts: dict, path: Path) -> Vocab:
    """A tokenizer.json. Special symbols are known by their names, not by its post-processor."""

    def refuse(what: str, instead: str) -> DataError:
        return DataError(f"{path}: {what}, which flaxlm does not do; {instead}")

    def part(name: str) -> dict:
        return facts[name] if facts.get(name) else {}

    model = facts["model"]
    kind = model["type"] if "type" in model else "not named"
    if kind not in ("WordPiece", "BPE"):
        raise refuse(f"the model is {short(kind)}", "name the sentencepiece .model it was made of")
    for name in ("dropout", "continuing_subword_prefix", "ignore_merges", "byte_fallback"):
        if kind == "BPE" and model.get(name):
            raise refuse(f"{name} is {short(model[name])}", "there is no substitute")
    try:  # whoever the file is made for knows best whether it is whole
        Tokenizer.from_str(content.decode())
    except BaseException as error:  # the package has no class of its own, and panics too
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0][:200]}") from error
    table = dict(_get(model, "vocab", dict, path))
    for added in facts["added_tokens"] if facts.get("added_tokens") else []:
        table.setdefault(added["content"], added["id"])
    pieces = _by_id(table, path)
    normalizer, cutter = part("normalizer"), part("pre_tokenizer")
    cut = cutter["type"] if cutter else None
    if normalizer:
        lowercase = normalizer.get("lowercase")
        as_ours = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        usual = all(normalizer.get(name) == value for name, value in as_ours.items())
        if not usual or normalizer.get("strip_accents") not in (None, lowercase):
            raise refuse(
                f"the normalizer is {json.dumps(normalizer)[:80]}", "there is no substitute"
            )
    words_alone = normalizer and cut == "BertPreTokenizer"
    if kind == "WordPiece":
        longest, mark = (
            model.get(name) for name in ("max_input_chars_per_word", "continuing_subword_prefix")
        )
        if not (words_alone and (mark, longest) == ("##", LONGEST)):
            raise refuse(
                f"pre_tokenizer {short(cut)}, prefix {short(mark)}, longest word {short(longest)}",
                f"known: BertPreTokenizer, '##', {LONGEST}",
            )
        if model.get("unk_token") != "[UNK]":
            raise refuse("the unknown word is not [UNK]", "there is no substitute")
        return WordPieceVocab(pieces, lowercase=lowercase, path=str(path))
    merges = [_pair(merge, path) for merge in _get(model, "merges", list, path)]
    if suffix := model.get("end_of_word_suffix"):
        if not (words_alone and lowercase and suffix == END):
            raise refuse("words are cut in another way", "name its vocab.json, merges beside it")
        return BpeVocab(pieces, merges, path=str(path))
    if normalizer or cut != "ByteLevel" or cutter.get("use_regex") is False:
        raise refuse(f"pre_tokenizer {short(cut)}", "known: ByteLevel as in vocab.json")
    space = _get(cutter, "add_prefix_space", bool, path)
    return BpeVocab(pieces, merges, path=str(path), prefix_space=space)
