"""Sentencepiece models, with sentinel ids above their pieces.

The model file knows nothing of sentinels: with V pieces and n sentinels, <extra_id_0> is V + n - 1
and <extra_id_{n-1}> is V. Models trained here normalise with sentencepiece's `nmt_nfkc`: it
unifies width and ligatures, drops control characters and joins runs of whitespace, so
`decode(encode(text))` is the normalised text, not always `text`.

Some published models expect text that was prepared outside of the model. What their authors' code
does is one of `RULES`; it is part of the vocabulary, and of its bytes.
"""

import base64
import unicodedata
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import sentencepiece

from flaxlm.data.vocab_base import SPECIAL, Vocab, container
from flaxlm.errors import DataError

# Signs that do not make a piece a unit of its own; every other sign, digits and ' among them, does.
_JOINING = frozenset('!"#$%&"()*+,-./:;?@[\\]^_`{|}~')
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


def _plain(text: str) -> str:
    return text


def _unaccented(text: str) -> str:
    return _without_accents(text.replace("``", '"').replace("''", '"'))


def _lowered(text: str) -> str:
    return _without_accents(text).lower()


def _without_accents(text: str) -> str:
    """Compatibility forms taken apart, and the marks that this sets free dropped."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return "".join(c for c in apart if not unicodedata.combining(c))


# What happens to a text before the model: nothing; accents and LaTeX's quotation marks go; accents
# and capitals go. All but the first take a comma off a piece that ends in a digit and a comma.
RULES: dict[str, Callable[[str], str]] = {
    "plain": _plain,
    "unaccented": _unaccented,
    "lowercase": _lowered,
}


class SentencepieceVocab(Vocab):
    """A sentencepiece model; see `Vocab`.

    `unit_starts` is the rule under which n-grams are masked with such vocabularies: a piece begins
    a unit if it begins a word or with "<", is one listed punctuation sign, or holds anything but
    the letters a-z and such signs: digits, apostrophes and foreign letters stand alone.
    """

    kind = "sentencepiece"

    def __init__(
        self, proto: bytes, *, sentinels: int = 100, path: str = "", rule: str | None = None
    ):
        """
        Args:
          proto: bytes of a .model file.
          sentinels: how many ids to put above the pieces; ignored if the model has its own.
          path: where it was read.
          rule: of `RULES`; None is "plain", but for models with a piece <eod> (the end of a
            document) "unaccented", as such models were published.

        Raises:
          DataError: `proto` is not a sentencepiece model.
        """
        if not proto:
            raise DataError(f"{path or 'the vocabulary'} is empty, not a sentencepiece model")
        try:
            self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
            pieces = [processor.id_to_piece(n) for n in range(processor.get_piece_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path or 'the vocabulary'} is not a sentencepiece model, or a damaged one"
            ) from error
        self._proto = proto
        found = dict(zip(pieces, range(len(pieces)), strict=True))

        def find(*names: str) -> int | None:
            return next((found[name] for name in names if name in found), None)

        symbols = {name: find(f"<{name}>", f"[{name.upper()}]") for name in SPECIAL[-3:]}
        for name in SPECIAL[:-3]:
            at = getattr(processor, f"{name}_id")()
            symbols[name] = at if at >= 0 else None
        self.rule = rule or ("unaccented" if "<eod>" in found else "plain")
        self.lowercase = self.rule == "lowercase"
        self._prepare = RULES[self.rule]
        own = [find(f"<extra_id_{k}>", f"▁<extra_id_{k}>") for k in range(sentinels)]
        # Some models hold their sentinels themselves.
        own = [at for at in own if at is not None] if own and own[0] is not None else None
        super().__init__(
            proto
            if self.rule == "plain"
            else container(
                kind=self.kind, rule=self.rule, proto=base64.b64encode(proto).decode("ascii")
            ),
            pieces,
            symbols,
            path=path,
            sentinels=sentinels,
            own_sentinels=own,
            controls=[n for n in range(len(pieces)) if processor.is_control(n)],
        )

    def __reduce__(self):
        settings = {"sentinels": len(self.sentinels), "path": self.path, "rule": self.rule}
        return partial(SentencepieceVocab, self._proto, **settings), ()

    def files(self) -> dict[str, bytes]:
        return {"spiece.model": self._proto}

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._prepare is _plain:
            return self._processor.encode(texts)
        batch = self._processor.encode([self._prepare(text) for text in texts])
        again = self._digit_comma
        return [self._take_commas_off(ids) if not again.isdisjoint(ids) else ids for ids in batch]

    @cached_property
    def _digit_comma(self) -> frozenset[int]:
        """Pieces that end in a digit and a comma."""
        return frozenset(
            n
            for n, piece in enumerate(self._spellings)
            if len(piece) > 1 and piece.endswith(",") and piece[-2].isdigit()
        )

    def _take_commas_off(self, ids: list[int]) -> list[int]:
        """The number before the comma is cut anew, the comma becomes a piece."""
        cut = []
        for at in ids:
            if at not in self._digit_comma:
                cut.append(at)
                continue
            piece = self._spellings[at]
            number = self._processor.encode(piece[:-1].replace("▁", ""), out_type=str)
            if not piece.startswith("▁") and number[0].startswith("▁"):
                number = [*([number[0][1:]] if len(number[0]) > 1 else []), *number[1:]]
            cut += [self._processor.piece_to_id(part) for part in (*number, ",")]
        return cut

    def _spans(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        from sentencepiece import sentencepiece_pb2  # needs protobuf, which spans alone do

        prepared, origin = self._traced(text)
        found = self._processor.encode(prepared, out_type="serialized_proto")
        # The model counts bytes.
        size = [len(c.encode()) for c in prepared]
        origin = np.append(np.repeat(origin[:-1], size), origin[-1])
        spans = []
        for piece in sentencepiece_pb2.SentencePieceText.FromString(found).pieces:
            cut = [piece.id]
            if self._prepare is not _plain and piece.id in self._digit_comma:
                cut = self._take_commas_off([piece.id])
            ends = [piece.end]
            for at in cut[:0:-1]:  # digits and commas, a byte each
                ends.append(ends[-1] - len(self._spellings[at].replace("▁", "")))
            spans += zip([piece.begin, *ends[:0:-1]], ends[::-1], strict=True)
        assert len(spans) == len(ids), f"{len(spans)} spans of {len(ids)} pieces"
        return [
            (int(origin[a]), int(origin[b - 1]) + 1 if b > a else int(origin[a])) for a, b in spans
        ]

    def _traced(self, text: str) -> tuple[str, list[int]]:
        """(the text as the model gets it, for each of its characters and its end the character of
        `text` that it comes from).
        """
        if self._prepare is _plain:
            return text, list(range(len(text) + 1))
        prepared, origin, at = [], [], 0
        while at < len(text):
            size = 2 if text[at : at + 2] in ("``", "''") else 1
            made = self._prepare(text[at : at + size])
            prepared.append(made)
            origin += [at] * len(made)
            at += size
        return "".join(prepared), [*origin, len(text)]

    def _decode(self, ids: list[int]) -> str:
        parts, run = [], []
        for at in ids:
            if at in self._spelt:
                parts += [self._decode_run(run), self._spellings[at]]
                run = []
            else:
                run.append(at)
        return "".join([*parts, self._decode_run(run)]).removeprefix(" ")

    def _decode_run(self, run: list[int]) -> str:
        """As sentencepiece decodes, but a space in front survives: what follows a sentinel may go
        on with a word.
        """
        if not run:
            return ""
        space = self._spellings[run[0]].startswith("▁")
        return (" " if space else "") + self._processor.decode(run).removeprefix(" ")

    def _starts_word(self, spelling: str) -> bool:
        return spelling.startswith("▁")

    @cached_property
    def unit_starts(self) -> np.ndarray:
        return self._flags(_starts_unit)


def _starts_unit(spelling: str) -> bool:
    inside = all(c in _JOINING or c.lower() in _LETTERS for c in spelling)
    return spelling.startswith(("▁", "<")) or spelling in _JOINING or not inside
