"""Examples in front of a question, as many as a model has room for.

Every question has examples of its own, drawn by the seed from the split they are taken from (Brown
et al. 2020, section 2.4), never one that asks the same.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flaxlm.decode.cache import has_encoder
from flaxlm.decode.prompts import Reader
from flaxlm.errors import DataError
from flaxlm.objectives.templates import Asked

BETWEEN = "\n\n"  # examples


@dataclass(frozen=True)
class Question:
    """What a model reads.

    Attributes:
      context: the text, with its examples.
      asked: what it ends with, and its candidates.
      shots: how many examples there was room for.
    """

    context: str
    asked: Asked
    shots: int


def context(shots: Sequence[tuple[str, str]], question: str, *, join: str = " ") -> str:
    """Solved examples, (asked, said) each, and a question behind them.

    >>> context([("dog =", "chien")], "cat =")
    'dog = chien\\n\\ncat ='
    """
    return BETWEEN.join([*(f"{asked}{join}{said}" for asked, said in shots), question])


def drawn(
    pool: Sequence[Asked], asked: Sequence[Asked], shots: int, *, seed: int
) -> list[list[Asked]]:
    """`shots` examples of the pool for each question.

    Raises:
      DataError: the pool has too few that are labelled and ask something else.
    """
    if not shots:
        return [[] for _ in asked]
    known = [one for one in pool if one.target is not None]
    found = []
    for number, question in enumerate(asked):
        draws = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        order = draws.permutation(len(known)).tolist()
        others = (known[at] for at in order if known[at].input != question.input)
        found.append(list(itertools.islice(others, shots)))
        if len(found[-1]) < shots:
            raise DataError(
                f"{shots} examples are asked for; of those to draw from {len(found[-1])} are "
                "labelled and ask something else"
            )
    return found


def question(
    reader: Reader, asked: Asked, shots: Sequence[Asked], *, join: str, room: int
) -> Question:
    """The question behind as many of its examples as fit; the first ones go first, as wholes.

    Args:
      room: tokens to leave for what is not among the candidates.
    """
    longest = getattr(reader.model, "longest", None)
    pairs = [(one.input, one.target) for one in shots]
    while True:
        text = context(pairs, asked.input, join=join)
        if not pairs or longest is None:
            return Question(text, asked, len(pairs))
        ends = [""] if has_encoder(reader.model) else [join + one for one in asked.candidates]
        needed = max(len(reader.ids(text + end)) for end in ends or [""])
        if needed + (0 if has_encoder(reader.model) else room) <= longest:
            return Question(text, asked, len(pairs))
        pairs = pairs[1:]
