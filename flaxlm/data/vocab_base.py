"""`Vocab`: what every kind of vocabulary offers, whatever tokeniser is behind it.

Beside ids and text it says which ids are not text (`special`) and which begin a word
(`word_starts`), so that objectives need not know how a tokeniser marks words.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from flaxlm.data.files import digest
from flaxlm.errors import ConfigError, DataError

SPECIAL = ("pad", "eos", "unk", "bos", "cls", "sep", "mask")


class Vocab(ABC):
    """A tokeniser with its ids. Cheap to pickle, safe to share between threads.

    Attributes:
      kind: "sentencepiece", "wordpiece", "bytes" (byte-level BPE) or "endings" (BPE whose pieces
        mark the ends of words).
      size: pieces and sentinels; ids are in [0, size).
      pieces: pieces of the model.
      pad, eos, unk, bos, cls, sep, mask: id, or None where there is no such piece. A byte-level
        vocabulary has one pair of ends: bos and eos are its cls and sep too, unless it has both;
        where it has no pad or unk, these are the eos (nothing is unknown to it, and padding has
        weight 0 everywhere).
      sentinels: int32 [n]; sentinels[0] is <extra_id_0>. Empty but for sentencepiece.
      special: bool [size]; ids that no text contains: the named ones, sentinels and other control
        pieces. unk stands for text and is none of them, unless it is the eos or pad too.
      word_starts: bool [size]; pieces that begin a word, and all special ones. The first token of a
        row begins a word whatever it is; of the kind "endings" all pieces do.
      unit_starts: bool [size]; as word_starts, and for sentencepiece also what is not made of
        English letters: see `SentencepieceVocab`.
      model: the vocabulary as bytes, which `load_vocab` reads back without knowing the kind.
      sha256: of `model`; what a corpus remembers of its vocabulary (sentinels are none of its
        business).
      path: where it was read, "" if it never was a file.
      lowercase: whether text is lower-cased before it is cut.
      keeps_spaces: whether whitespace survives in the ids; else runs of it count as one space.
    """

    kind: str
    pad: int | None = None
    eos: int | None = None
    unk: int | None = None
    bos: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    lowercase: bool = False
    keeps_spaces: bool = False

    def __init__(
        self,
        model: bytes,
        spellings: list[str],
        symbols: dict[str, int | None],
        *,
        path: str,
        sentinels: int = 0,
        own_sentinels: list[int] | None = None,
        controls: Iterable[int] = (),
    ):
        """For subclasses.

        Args:
          model: see the class.
          spellings: of all pieces, by id.
          symbols: id of each name of `SPECIAL`, or None.
          path: see the class.
          sentinels: how many ids to put above the pieces.
          own_sentinels: the ids of the sentinels, if they are pieces of the model.
          controls: further ids that are not text.
        """
        self.model = model
        self.sha256 = digest(model)
        self.path = os.fspath(path)
        self.pieces = len(spellings)
        if own_sentinels:
            self.sentinels = np.array(own_sentinels, np.int32)
            self.size = self.pieces
        else:
            self.size = self.pieces + sentinels
            self.sentinels = np.arange(self.size - 1, self.pieces - 1, -1, dtype=np.int32)
        for name in SPECIAL:
            setattr(self, name, symbols[name])
        self._spellings = [*spellings, *[""] * (self.size - self.pieces)]
        for number, at in enumerate(self.sentinels.tolist()):
            self._spellings[at] = f"<extra_id_{number}>"
        self._silent = {self.pad, self.eos, self.bos}  # layout; decoding does not spell it out
        named = {symbols[name] for name in SPECIAL if name != "unk"} - {None}
        self.special = np.zeros(self.size, bool)
        self.special[[*named, *controls]] = True
        self.special[self.sentinels] = True
        # What decoding spells out although no text contains it.
        self._spelt = {*self.sentinels.tolist(), self.cls, self.sep, self.mask} - self._silent

    @abstractmethod
    def __reduce__(self):
        """Pickled as its bytes."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; ValueError or TypeError for text that is none."""

    @abstractmethod
    def _spans(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """(first, last + 1) of the characters of each of the `ids` of `text`."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of legal ids without the silent ones."""

    @abstractmethod
    def _starts_word(self, spelling: str) -> bool:
        """Whether an ordinary piece begins a word."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The vocabulary as the files in which its kind is usually published, by name."""

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """int32 [n] ids of `text`, without eos or other layout.

        Args:
          text: any text.
          specials: whether names of special pieces in it, such as [MASK] or <extra_id_0>, stand
            for these pieces; by default they are ordinary text, so that no text can mask or end
            anything. Over bytes, spaces before the mask belong to it, as they belong to words.

        Raises:
          DataError: `text` has half a character (a lone surrogate).
        """
        if not specials:
            return np.array(self.encode_batch([text])[0], np.int32)
        ids, start = [], 0
        for name in self._names.finditer(text):
            before = text[start : name.start()]
            if self.kind == "bytes" and self._ids[name[0]] == self.mask:
                before = before.rstrip()
            ids += [*self.encode_batch([before])[0], self._ids[name[0]]]
            start = name.end()
        return np.array(ids + self.encode_batch([text[start:]])[0], np.int32)

    def encode_batch(self, texts: list[str], *, threads: int = 1) -> list[list[int]]:
        """Ids of each text, as lists; raises as `encode`."""
        try:
            if threads == 1:
                return self._encode(texts)
            share = -(-len(texts) // threads) or 1
            parts = [texts[n : n + share] for n in range(0, len(texts), share)]
            with ThreadPoolExecutor(threads) as pool:
                return [ids for part in pool.map(self._encode, parts) for ids in part]
        except (ValueError, RuntimeError, TypeError) as error:
            for number, text in enumerate(texts):
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise DataError(
                        f"text {number} has a lone surrogate, half of a character"
                    ) from error
            raise

    def encode_spans(self, texts: list[str]) -> list[tuple[list[int], np.ndarray]]:
        """Of each text its ids, as `encode_batch` gives them, and [n, 2] the characters of the text
        that each of them stands for: first, last + 1, without the spaces around.

        Raises:
          DataError: as `encode`.
        """
        every = self.encode_batch(texts)
        return [
            (ids, _trimmed(text, self._spans(text, ids)))
            for text, ids in zip(texts, every, strict=True)
        ]

    def decode(self, ids) -> str:
        """The text of `ids`; sentinels, cls, sep and mask are spelt out, pad, eos and bos are
        silent.

        Raises:
          DataError: an id outside [0, size).
        """
        ids = np.asarray(ids, np.int64).ravel().tolist()
        for at in ids:
            if not 0 <= at < self.size:
                raise DataError(f"token id {at} is outside the vocabulary [0, {self.size})")
        return self._decode([at for at in ids if at not in self._silent])

    def piece(self, at: int) -> str:
        """The spelling of one id."""
        return self._spellings[int(at)]

    @cached_property
    def word_starts(self) -> np.ndarray:
        return self._flags(self._starts_word)

    @property
    def unit_starts(self) -> np.ndarray:
        return self.word_starts

    def require(self, *names: str) -> None:
        """Refuse early if special ids that an objective needs are missing.

        Args:
          names: of `SPECIAL`, or "sentinels".

        Raises:
          ConfigError: naming what is missing.
        """
        missing = [
            n
            for n in names
            if (len(self.sentinels) == 0 if n == "sentinels" else getattr(self, n) is None)
        ]
        if missing:
            raise ConfigError(
                f"the vocabulary {self.path or self.sha256[:12]} has no {', '.join(missing)}, "
                "which the objective needs. `python -m flaxlm.data vocab` trains one that has "
                "(--kind unigram and bpe: all, wordpiece: pad unk cls sep mask, bytes: all but "
                "sentinels); the number of sentinels is data.vocabulary.sentinels"
            )

    def _flags(self, rule) -> np.ndarray:
        return self.special | np.fromiter(map(rule, self._spellings), bool, self.size)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Id of each name that `encode(specials=True)` knows."""
        ids = [getattr(self, name) for name in SPECIAL]
        ids = [at for at in ids if at is not None] + self.sentinels.tolist()
        return {self._spellings[at]: at for at in ids}

    @cached_property
    def _names(self) -> re.Pattern:
        names = "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))
        return re.compile(names or "(?!)")  # without names nothing, not everything


def _trimmed(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    found = np.empty((len(spans), 2), np.int32)
    for at, (first, stop) in enumerate(spans):
        part = text[first:stop]
        if inner := part.strip():
            first += len(part) - len(part.lstrip())
            stop = first + len(inner)
        found[at] = first, stop
    return found


def short(value) -> str:
    """What a file brings, as a message can show it: on one line, of bounded length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def container(**facts) -> bytes:
    """The bytes of a vocabulary that is not one file of its own: JSON, the same for the same
    facts.
    """
    text = json.dumps(
        {"flaxlm": "vocabulary", **facts},
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    return text.encode()


def unambiguous(pieces: list[str], path: str) -> dict[str, int]:
    """The id of each piece.

    Raises:
      DataError: a piece occurs twice; both lines are named, which begin with 1.
    """
    found: dict[str, int] = {}
    for at, piece in enumerate(pieces):
        if found.setdefault(piece, at) != at:
            first = found[piece]
            raise DataError(
                f"{path or 'the vocabulary'}: {short(piece)} is piece {first} and piece {at} "
                f"(lines {first + 1} and {at + 1} of a vocab.txt); every piece has one id"
            )
    return found
