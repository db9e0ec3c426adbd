"""tokenizer.json of the tokenizers library: every step from a text to its ids, spelt out."""

import base64
from collections.abc import Mapping

from flaxlm.data.vocab_base import SPECIAL, Vocab
from flaxlm.errors import ConfigError


def tokenizer_json(vocab: Vocab, templates: list[list[tuple[str, int]]]) -> dict:
    """tokenizer.json of a vocabulary.

    Args:
      templates: (symbol, or A or B for a text, and its type) of a row of one text, and of two.

    Raises:
      ConfigError: the vocabulary lacks a symbol.
    """
    parts = {
        "sentencepiece": _sentencepiece,
        "wordpiece": _wordpiece,
        "bytes": _bytes,
        "endings": _endings,
    }
    if vocab.kind not in parts:
        raise ConfigError(f"a {vocab.kind} vocabulary has no tokenizer files")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocab),
        **parts[vocab.kind](vocab),
        "post_processor": _processor(vocab, templates),
    }


def _added(vocab: Vocab) -> list[dict]:
    """The special symbols, which the tokenizer finds in a text by name."""
    named = {getattr(vocab, name) for name in SPECIAL} - {None}
    return [
        {
            "id": at,
            "content": vocab.piece(at),
            "single_word": False,
            "lstrip": at == vocab.mask and vocab.keeps_spaces,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at in sorted({*named, *vocab.sentinels.tolist()})
    ]


def _processor(vocab: Vocab, templates: list[list[tuple[str, int]]]) -> dict:
    used: dict[str, dict] = {}

    def item(word: str, kind: int) -> dict:
        if word in ("A", "B"):
            return {"Sequence": {"id": word, "type_id": kind}}
        vocab.require(word)
        at = getattr(vocab, word)
        name = vocab.piece(at)
        used[name] = {"id": name, "ids": [at], "tokens": [name]}
        return {"SpecialToken": {"id": name, "type_id": kind}}

    sides = {
        side: [item(*word) for word in words]
        for side, words in zip(("single", "pair"), templates, strict=True)
    }
    return {"type": "TemplateProcessing", **sides, "special_tokens": used}


def _wordpiece(vocab: Vocab) -> dict:
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": vocab.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocab.piece(vocab.unk),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": _ids(vocab),
        },
    }


def _bytes(vocab: Vocab) -> dict:
    level = {
        "type": "ByteLevel",
        "add_prefix_space": vocab.prefix_space,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "normalizer": None,
        "pre_tokenizer": level,
        "decoder": level,
        "model": _bpe(_ids(vocab), _merges(vocab)),
    }


def _endings(vocab: Vocab) -> dict:
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": vocab.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": _bpe(
            _ids(vocab),
            _merges(vocab),
            unk_token=vocab.piece(vocab.unk),
            end_of_word_suffix="</w>",
        ),
    }


_ACCENTS = ({"type": "NFKD"}, {"type": "StripAccents"})
_QUOTES = tuple(
    {"type": "Replace", "pattern": {"String": marks}, "content": '"'} for marks in ("``", "''")
)
# What flaxlm.data.sentencepiece_vocab.RULES do to a text before the model.
_PREPARED = {
    "plain": (),
    "unaccented": (*_QUOTES, *_ACCENTS),
    "lowercase": (*_ACCENTS, {"type": "Lowercase"}),
}


def _sentencepiece(vocab: Vocab) -> dict:
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which writing alone does

    proto = sentencepiece_model_pb2.ModelProto.FromString(vocab.files()["spiece.model"])
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    steps = list(_PREPARED[vocab.rule])
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    space = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always" if spec.add_dummy_prefix else "never",
        "split": False,
    }
    if trainer.model_type == trainer.UNIGRAM:
        model = {
            "type": "Unigram",
            "unk_id": vocab.unk,
            "vocab": [list(pair) for pair in pieces],
            "byte_fallback": trainer.byte_fallback,
        }
    else:
        model = _bpe(
            {piece: at for at, (piece, _) in enumerate(pieces)},
            _merges_of_scores(proto),
            unk_token=vocab.piece(vocab.unk),
            byte_fallback=trainer.byte_fallback,
            fuse_unk=True,
        )
    decoders = [{"type": "ByteFallback"}, space] if trainer.byte_fallback else [space]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": space,
        "decoder": {"type": "Sequence", "decoders": [*decoders]},
        "model": model,
    }


def _merges_of_scores(proto) -> list[list[str]]:
    """The merges of a sentencepiece BPE: every way to make a piece of two, best score first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    found = [
        (-score, at, [piece[:cut], piece[cut:]])
        for at, (piece, score) in enumerate(scores.items())
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [pair for *_, pair in sorted(found, key=lambda item: item[:2])]


def _bpe(ids: Mapping[str, int], merges: list[list[str]], **options) -> dict:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": dict(ids),
        "merges": merges,
    }


def _ids(vocab: Vocab) -> dict[str, int]:
    return {vocab.piece(at): at for at in range(vocab.pieces)}


def _merges(vocab: Vocab) -> list[list[str]]:
    lines = vocab.files()["merges.txt"].decode("utf-8").splitlines()
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]
