"""What stands around the texts of an example, and how long ones are cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flaxlm.errors import ConfigError

Row = tuple[list[int], list[int]]  # (ids, types)


@dataclass(frozen=True)
class Texts:
    """The layout of one text and of a pair, as its family was pretrained with it.

    A layout is words: names of special symbols ("cls"), A and B for the texts; ":1" gives a word
    the type 1. The default is BERT's (and ALBERT's, ELECTRA's). RoBERTa has "cls A sep" and
    "cls A sep sep B sep", XLNet "A sep cls:2" and "A sep B:1 sep:1 cls:2", and a causal model reads
    its row at the last word, as in "bos A cls" and "bos A sep B cls". transformers puts nothing
    around the texts of GPT-2, "A" and "A B"; BART has "bos A eos" and "bos A eos eos B eos", T5
    "A eos" and "A eos B eos". <extra_id_0>, ... are the vocabulary's sentinels: symbols that were
    added to it, of which GPT-1 has start, delimiter and extract.

    Attributes:
      single, pair: the layouts.
      decoder: symbol with which a decoder begins that reads the row once more, shifted right ("eos"
        for BART, "pad" for T5); "": there is none.
    """

    single: str = "cls A sep"
    pair: str = "cls A sep B:1 sep:1"
    decoder: str = ""

    def __post_init__(self):
        for name, count in (("single", 1), ("pair", 2)):
            words = [word for word, _ in self._words(count)]
            if [word for word in words if word in ("A", "B")] != ["A", "B"][:count]:
                raise ConfigError(
                    f"objective.texts.{name}={getattr(self, name)!r}: each text once, "
                    f"{' and then '.join(['A', 'B'][:count])}, among names of symbols"
                )

    def _words(self, count: int) -> list[tuple[str, int]]:
        parts = [word.partition(":") for word in (self.single, self.pair)[count - 1].split()]
        return [(word, int(kind or 0)) for word, _, kind in parts]

    def specials(self, count: int) -> int:
        """How many symbols stand around `count` texts."""
        return len(self._words(count)) - count

    def room(self, count: int, length: int) -> int:
        """Tokens of texts that a row of `length` positions has room for.

        Raises:
          ConfigError: none for each text.
        """
        room = length - self.specials(count)
        if room < count:
            raise ConfigError(
                f"data.length={length}: {self.specials(count)} symbols stand around {count} "
                "text(s), which leaves no room for them"
            )
        return room

    def around(self, vocab, *parts: Sequence[int]) -> tuple[Row, list[int]]:
        """One row of one or two texts, and where in it each of them begins.

        Raises:
          ConfigError: the vocabulary lacks a symbol.
        """
        ids, types, begins = [], [], []
        for word, kind in self._words(len(parts)):
            if word in ("A", "B"):
                begins.append(len(ids))
                part = parts["AB".index(word)]
            else:
                part = [symbol(vocab, word)]
            ids += part
            types += [kind] * len(part)
        return (ids, types), begins

    def place_of_symbol(self, count: int, name: str, row: Row) -> int:
        """Where in a row of `count` texts the symbol `name` stands: at the beginning or the end."""
        words = [word for word, _ in self._words(count)]
        return 0 if words[0] == name else len(row[0]) - 1


def symbol(vocab, name: str) -> int:
    """The id of a symbol, by its name or as a sentinel, <extra_id_0>.

    Raises:
      ConfigError: the vocabulary lacks it.
    """
    if match := re.fullmatch(r"<extra_id_(\d+)>", name):
        number, count = int(match[1]), len(vocab.sentinels)
        if number >= count:
            raise ConfigError(
                f"objective.texts: {name}, and the vocabulary has {count} sentinels: make "
                f"data.vocabulary.sentinels at least {number + 1}"
            )
        return int(vocab.sentinels[number])
    if getattr(vocab, name) is None:
        vocab.require(name)
    return getattr(vocab, name)


def truncated(parts: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """One or two texts with at most `room` tokens in all, the longer cut at its end first.

    >>> [len(part) for part in truncated([[0] * 9, [0] * 4], 10)]
    [6, 4]
    >>> [len(part) for part in truncated([[0] * 9, [0] * 8], 11)]
    [6, 5]
    """
    if sum(map(len, parts)) <= room:
        return list(parts)
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    half = room // 2
    if len(second) <= half:
        return [first[: room - len(second)], second]
    if len(first) <= room - half:
        return [first, second[: room - len(first)]]
    return [first[: room - half], second[:half]]


def pieces_of_words(words: Sequence[str], vocab) -> tuple[list[int], list[int]]:
    """(pieces of all words, the first piece of each word). A word without a piece is unknown."""
    spaced = [f" {w}" if n and vocab.keeps_spaces else w for n, w in enumerate(words)]
    pieces, first = [], []
    for ids in vocab.encode_batch(spaced):
        first.append(len(pieces))
        pieces += ids or [vocab.unk]
    return pieces, first


def windows(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the windows of `room` tokens that go over `count` tokens, each `stride`
    tokens on from the one before; the last ends with the tokens.

    >>> windows(10, 4, 3)
    [(0, 4), (3, 7), (6, 10)]
    >>> windows(3, 4, 2)
    [(0, 3)]
    """
    starts = [0]
    while starts[-1] + room < count:
        starts.append(starts[-1] + stride)
    return [(start, min(start + room, count)) for start in starts]


def nearest_window(places: Sequence[tuple[int, int]], at: int) -> int:
    """Of the windows that hold the token `at`, the one in which it has the most context: the larger
    of the lesser of what stands before and behind it. The first of equals.
    """
    return max(
        (n for n, (first, stop) in enumerate(places) if first <= at < stop),
        key=lambda n: min(at - places[n][0], places[n][1] - 1 - at),
    )
