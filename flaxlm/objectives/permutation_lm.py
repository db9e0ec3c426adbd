"""XLNet's objective: predict some tokens of a row in a random order, each from the tokens that are
not predicted and from those that come before it in that order (Yang et al. 2019, sections 2.2-2.5).

    row         [ reuse tokens | A SEP B SEP CLS ]    or, without pairs, [ text SEP CLS ]
    predicted   spans of 1-5 pieces, each with about `alpha` times as many pieces around it that are
                not; what is left of the number to predict are single pieces

A is the text right after the `reuse` tokens, up to the end of a sentence; B goes on from there half
of the time, else begins at a sentence of another row. (The published code keeps which it was and
never reads it.) The next row of the same place in the batch begins `reuse` tokens further on, where
a memory of the model reads on.

Three kinds of tokens: predicted ones, SEP and CLS, and plain ones. Plain tokens are seen by all
that come later in the row's parts and see plain ones alone. The others have a random place in the
order of their part; a predicted token sees those placed before it, SEP and CLS also themselves. The
part of the first `reuse` tokens never sees the second, the second sees all of the first. All of
that is two integers per position: i sees j where order[j] < reach[i].

Follows the published data_utils.py and its arithmetic, save that B is what is cut where A and B are
too long (they shorten the longer one), and that the rows are all read forwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy
from flaxlm.objectives.base import Apply, Example, Objective, Outputs, Term
from flaxlm.objectives.permutation_rows import pair_rows, single_rows

_UNSEEN = np.iinfo(np.int32).max  # the order of padding: below nobody's reach


@dataclass(frozen=True, kw_only=True)
class PermutationLM(Objective):
    """Permutation language modelling with partial prediction.

    Attributes:
      predicted: tokens per row; SEP and CLS may be drawn and are then left out. Shorter rows have
        the same share. Half of them in each part, an odd one in the first.
      reuse: tokens of the first part, by which a row moves on; 0: rows of one part that do not
        follow one another.
      pairs: whether the second part is two texts.
      shuffled: tokens that a random order is drawn for; a part is blocks of so many in turn, all in
        that same order (the published perm_size). 0: a part as a whole.
      alpha, beta: a span of n pieces has n * alpha / beta around it.
      longest: of a span, in pieces; a length n is drawn in proportion to 1 / n.
    """

    predicted: int = 85
    reuse: int = 256
    pairs: bool = True
    shuffled: int = 0
    alpha: int = 6
    beta: int = 1
    longest: int = 5

    symbols = ("sep", "cls")
    measured = ("plm", "slot_targets", "slot_weights")

    def __post_init__(self):
        for name, least in (
            ("predicted", 1), ("reuse", 0), ("shuffled", 0), ("beta", 1), ("longest", 1)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(
                    f"objective.{name}={getattr(self, name)}: must be at least {least}"
                )
        if self.alpha < self.beta:
            raise ConfigError(
                f"objective.alpha={self.alpha}: must be at least beta={self.beta}, or spans would "
                "stand without anything around them (XLNet uses 6 and 1)"
            )

    @property
    def packings(self) -> tuple[str, ...]:
        """Rows that go on where they ended if there is something to reuse; pairs need full rows."""
        if self.reuse:
            return ("continue",)
        return ("stream", "continue") if self.pairs else ("stream", "continue", "split")

    @property
    def partners(self) -> int:
        """With pairs, a row to take the second text from."""
        return int(self.pairs)

    def window(self, length: int) -> int:
        """Raw tokens of a row: all positions but those of SEP and CLS.

        Raises:
          ConfigError: the parts or the tokens to predict do not fit the length.
        """
        specials = 3 if self.pairs else 2
        if self.reuse > length - specials - 2:
            raise ConfigError(
                f"objective.reuse={self.reuse} leaves no room in data.length={length} for a second "
                f"part; at most {max(length - specials - 2, 0)}"
            )
        for start, stop, predicted in self._parts(length):
            if self.shuffled and (stop - start) % self.shuffled:
                raise ConfigError(
                    f"objective.shuffled={self.shuffled} does not divide a part of the row, "
                    f"{stop - start} of data.length={length} positions"
                )
            if predicted > (stop - start) // 2:
                raise ConfigError(
                    f"objective.predicted={self.predicted}: {predicted} of a part of "
                    f"{stop - start} positions; at most half of it"
                )
        return length - specials

    def advance(self, length: int) -> int:
        """Raw tokens that a row moves on: `reuse`, or its window."""
        return self.reuse or self.window(length)

    def separator(self, vocab) -> int:
        """Eos after every document. Texts of a row go on over it, as published."""
        return vocab.eos

    def _parts(self, length: int) -> list[tuple[int, int, int]]:
        """(start, stop, tokens to predict) of the parts that are ordered apart."""
        if not self.reuse:
            return [(0, length, self.predicted)]
        later = self.predicted // 2
        return [(0, self.reuse, self.predicted - later), (self.reuse, length, later)]

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features tokens, segments, types, order, reach [B, L]; slots, slot_targets, slot_weights
        [B, predicted].
        """
        made = pair_rows(rows, self.reuse, rng, vocab) if self.pairs else single_rows(rows, vocab)
        tokens, types, lengths = made
        count, length = tokens.shape
        real = np.arange(length) < lengths[:, None]
        functional = (tokens == vocab.sep) | (tokens == vocab.cls)
        # Control symbols begin a word, as published. There, so does a lone punctuation mark; here
        # the vocabulary decides.
        starts = vocab.word_starts.take(tokens, mode="clip") & real

        order = np.empty((count, length), np.int32)
        target = np.empty((count, length), bool)
        base = 0
        for start, stop, predicted in self._parts(length):
            part = slice(start, stop)
            within = np.clip(lengths - start, 0, stop - start)
            chosen = self._choose(starts[:, part], within, predicted, rng)
            target[:, part] = chosen & ~functional[:, part]
            block = self.shuffled or stop - start
            place = base + np.arange(0, stop - start, block)[:, None]
            place = place + _shuffled(rng, count, block)[:, None]
            hidden = chosen | functional[:, part]
            order[:, part] = np.where(hidden, place.reshape(count, -1), base - 1)
            base += stop - start + 1  # plain tokens of a later part stand above all of the earlier

        reach = np.where(target, order, order + 1)
        order[~real], reach[~real] = _UNSEEN, 0
        return {
            "tokens": tokens,
            "segments": real.astype(np.int32),
            "types": types,
            "order": order,
            "reach": reach,
            **_slots(tokens, target, self.predicted, vocab),
        }

    def _choose(self, starts: np.ndarray, lengths: np.ndarray, predicted: int, rng: RowRandom):
        """[B, W] bool: the pieces of a part that are drawn, specials among them.

        Args:
          starts: [B, W] bool, a span may begin here.
          lengths: [B] pieces of the part.
          predicted: pieces to draw of a part of W pieces.
        """
        width = starts.shape[1]
        chosen, left = self._spans(starts, lengths, predicted, rng)
        # The rest: single pieces, those with the smallest random numbers.
        number = _numbered(rng, width)
        number[chosen | (np.arange(width) >= lengths[:, None])] = np.iinfo(np.uint64).max
        last = np.take_along_axis(np.sort(number, axis=1), np.maximum(left - 1, 0)[:, None], axis=1)
        return chosen | ((number <= last) & (left > 0)[:, None])

    def _spans(self, starts, lengths, predicted, rng) -> tuple[np.ndarray, np.ndarray]:
        """([B, W] bool pieces in spans, [B] how many there are still to draw); as `_choose`."""
        count, width = starts.shape
        chance = np.cumsum(1 / np.arange(1, self.longest + 1))
        sizes = 1 + np.searchsorted(chance / chance[-1], rng.uniform(predicted), side="right")
        sizes = np.minimum(sizes, self.longest)
        before = rng.uniform(predicted)
        ahead = np.where(starts, np.arange(width), width)
        ahead = np.minimum.accumulate(ahead[:, ::-1], axis=1)[:, ::-1]
        ahead = np.pad(ahead, ((0, 0), (0, 1)), constant_values=width).ravel()
        row = np.arange(count) * (width + 1)

        left = predicted * lengths // width
        edges = np.zeros(count * (width + 1), np.int8)
        at = np.zeros(count, np.int64)
        alive = left > 0
        for turn in range(predicted):  # a span of every row each
            size = np.minimum(sizes[:, turn], left)
            around = size * self.alpha // self.beta
            lead = (before[:, turn] * around).astype(np.int64)
            begin = ahead[row + np.minimum(at + lead, width)]
            end = begin + size
            alive &= (left > 0) & (end < lengths)
            if not alive.any():
                break
            edges[(row + begin)[alive]] = 1
            edges[(row + end)[alive]] = -1
            at = end + around - lead
            left = left - size * alive
        edges = edges.reshape(count, -1)[:, :width]
        return np.cumsum(edges, axis=1, dtype=np.int8) > 0, left

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """One call of the model, whose "logits" are those of the slots; adds "nll" [B, P] fp32."""
        outputs = apply(batch, rng=rng)
        nll, _ = cross_entropy(outputs["logits"], batch["slot_targets"])
        return {**outputs, "nll": nll}

    @property
    def terms(self) -> Mapping[str, Term]:
        """ "plm", the cross-entropy of the predicted tokens."""
        return {"plm": Term(lambda outputs, batch: outputs["nll"], "slot_weights")}

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(tokens[segments > 0]), vocab.decode(targets[weights > 0]))
            for tokens, segments, targets, weights in zip(
                *(
                    features[name]
                    for name in ("tokens", "segments", "slot_targets", "slot_weights")
                ),
                strict=True,
            )
        ]


def _numbered(rng: RowRandom, width: int) -> np.ndarray:
    """[B, width] uint64: 32 random bits above the column's number, so no two are equal."""
    return rng.bits(width).astype(np.uint64) << np.uint64(32) | np.arange(width, dtype=np.uint64)


def _shuffled(rng: RowRandom, count: int, width: int) -> np.ndarray:
    """[B, width] a random permutation per row. Sorted numbers carry their columns along: faster
    than an argsort.
    """
    return (np.sort(_numbered(rng, width), axis=1) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _slots(tokens: np.ndarray, target: np.ndarray, predicted: int, vocab) -> Features:
    """The features of the predicted tokens, in the order of their positions."""
    count = len(tokens)
    slots = np.zeros((count, predicted), np.int32)
    targets = np.full((count, predicted), vocab.pad, np.int32)
    weights = np.arange(predicted) < np.count_nonzero(target, axis=1)[:, None]
    slots[weights] = np.flatnonzero(target) % target.shape[1]
    targets[weights] = tokens[target]
    return {"slots": slots, "slot_targets": targets, "slot_weights": weights.astype(np.float32)}
