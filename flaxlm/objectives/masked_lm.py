"""Masked language modelling: tokens are hidden and predicted from both sides (Devlin et al. 2019,
section 3.1; with a pair of texts whose relation is predicted too).

    text        [CLS] the chef cooked the meal [SEP]
    input       [CLS] the [MASK] cooked the man [SEP]
    slots       2 chef, 5 meal                            positions and the ids to predict there

Of the chosen tokens 80 % become [MASK], 10 % a random id, 10 % stay. Which tokens are chosen
together is `units`, what a row is made of is `pairs`. BERT is `MaskedLM(pairs=NextSentence())`,
ALBERT `MaskedLM(units=Ngrams(), pairs=SentenceOrder())`, RoBERTa
`MaskedLM(slots=77, units=Tokens(specials=True), dither=True, random_from=4)` on full sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy
from flaxlm.objectives.base import Apply, Example, Objective, Outputs, Term
from flaxlm.objectives.layouts import Layout, OneText
from flaxlm.objectives.units import Tokens, Units


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Predict hidden tokens; with labelled `pairs` also how the two texts of a row belong together.

    Reads the outputs "logits" and, with labelled `pairs`, "pair_logits". Logits are computed at the
    slots alone.

    Attributes:
      rate: share of a row's positions that is chosen, [CLS] and [SEP] counted, rounded; at least
        one token.
      slots: most tokens chosen of a row.
      mask: share of the chosen tokens that become [MASK].
      random: share that become a random id; the others stay.
      random_from: least random id (RoBERTa leaves out its first four).
      units: what is chosen together.
      pairs: two texts per row, or None for one.
      dither: the number of a row is rate times its positions plus a uniform number below 1,
        rounded down, and may be 0 (RoBERTa); else rounded to the nearest.
      static: so many corruptions of a text are made, epoch after epoch in turn (BERT: 10, RoBERTa's
        static masking); 0 makes new ones for ever. Partner rows change all the same.
    """

    rate: float = 0.15
    slots: int = 20
    mask: float = 0.8
    random: float = 0.1
    random_from: int = 0
    units: Units = field(default_factory=Tokens)
    pairs: Layout | None = None
    dither: bool = False
    static: int = 0

    symbols = ("cls", "sep", "mask")
    measured = ("mlm", "slot_targets", "slot_weights")

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise ConfigError(
                f"objective.rate={self.rate} must be between 0 and 1 (BERT uses 0.15)"
            )
        if self.slots < 1:
            raise ConfigError(f"objective.slots={self.slots}: at least 1 (BERT uses 20 for 128)")
        if not (self.mask >= 0 and self.random >= 0 and self.mask + self.random <= 1):
            raise ConfigError(
                f"objective.mask={self.mask} and objective.random={self.random} are shares of the "
                "chosen tokens: 0 or more, together at most 1 (BERT uses 0.8 and 0.1)"
            )
        if self.random_from < 0 or self.static < 0:
            raise ConfigError(
                f"objective.random_from={self.random_from} and objective.static={self.static}: "
                "0 or more"
            )

    @property
    def _layout(self) -> Layout:
        return OneText() if self.pairs is None else self.pairs

    @property
    def packings(self) -> tuple[str, ...]:
        """A stream is cut anew in every epoch, so its windows have no static corruption."""
        return tuple(
            name for name in self._layout.packings if not (self.static and name == "stream")
        )

    @property
    def partners(self) -> int:
        return self._layout.partners

    def window(self, length: int) -> int:
        if self.slots > length:
            raise ConfigError(
                f"objective.slots={self.slots} is more than data.length={length}: the slots of a "
                f"row are positions; {max(round(self.rate * length), 1)} would do"
            )
        return self._layout.window(length)

    def separator(self, vocab) -> int | None:
        return self._layout.separator(vocab)

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features [B, L]: tokens (corrupted), segments, positions, types; [B, slots]: slots,
        ascending, slot_targets, slot_weights; of pairs also labels and label_weights [B].
        """
        if self.static:
            turn = rows.epoch % self.static
            rng = RowRandom(rng.seed, np.maximum(rows.window, 0) * self.static + turn)
        features = self._layout.lay_out(rows, rng, vocab)
        tokens, segments = features["tokens"], features["segments"]
        numbers = self._numbers(np.count_nonzero(segments, axis=1), rng)
        chosen = self.units.choose(tokens, segments, numbers, rng, vocab)
        slots, used, flat = _slots(chosen, self.slots)
        corrupted, targets = self._corrupt(tokens, used, flat, rng, vocab)
        return {
            **features,
            "tokens": corrupted,
            "slots": slots,
            "slot_targets": targets,
            "slot_weights": used.astype(np.float32),
        }

    def _numbers(self, lengths: np.ndarray, rng: RowRandom) -> np.ndarray:
        """[B] how many tokens are chosen of rows of so many positions; none of an empty row."""
        expected = lengths * self.rate
        if self.dither:
            found = (expected + rng.uniform(1)[:, 0]).astype(np.int64)
        else:
            found = np.maximum(np.rint(expected).astype(np.int64), 1)
        return np.minimum(found, self.slots) * (lengths > 0)

    def _corrupt(self, tokens, used, flat, rng: RowRandom, vocab):
        """(tokens with the places `flat` corrupted, ids that stood there [B, slots])."""
        draws = rng.bits(2 * self.slots)
        fate, other = draws[:, : self.slots][used], draws[:, self.slots :][used].astype(np.uint64)
        most = vocab.pieces - self.random_from
        if most < 1:
            raise ConfigError(
                f"objective.random_from={self.random_from}: there are only {vocab.pieces} pieces"
            )
        original = tokens.ravel()[flat]
        ids = self.random_from + (other * np.uint64(most) >> np.uint64(32)).astype(np.int32)
        # Thresholds in 64 bits: a share of 1 is 2^32.
        masked, changed = (
            fate < np.uint64(round(share * 2**32)) for share in (self.mask, self.mask + self.random)
        )
        ids[~changed] = original[~changed]
        ids[masked] = vocab.mask
        corrupted = tokens.copy()
        corrupted.ravel()[flat] = ids
        targets = np.zeros(used.shape, np.int32)
        targets[used] = original
        return corrupted, targets

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """One call of the model; adds "mlm_nll" [B, slots], and "pair_nll", "pair_hit" [B]."""
        outputs = apply(batch, rng=rng)
        nll, _ = cross_entropy(outputs["logits"].take(batch["slots"]), batch["slot_targets"])
        found = {**outputs, "mlm_nll": nll}
        if self._layout.labelled:
            logits = outputs["pair_logits"].astype(jnp.float32)
            labels = batch["labels"]
            picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            found["pair_nll"] = jax.nn.logsumexp(logits, axis=1) - picked
            found["pair_hit"] = (logits.argmax(axis=1) == labels).astype(jnp.float32)
        return found

    @property
    def terms(self) -> Mapping[str, Term]:
        """The losses "mlm" and "pair", equally weighted; as a metric "pair_accuracy"."""
        terms = {"mlm": Term(lambda outputs, batch: outputs["mlm_nll"], "slot_weights")}
        if self._layout.labelled:
            terms["pair"] = Term(lambda outputs, batch: outputs["pair_nll"], "label_weights")
            terms["pair_accuracy"] = Term(
                lambda outputs, batch: outputs["pair_hit"], "label_weights", scale=0.0
            )
        return terms

    def show(self, features: Features, vocab) -> list[Example]:
        """The corrupted text, and the text with every slot filled."""
        tokens, segments = features["tokens"], features["segments"]
        used = features["slot_weights"] > 0
        filled = tokens.copy()
        filled[np.nonzero(used)[0], features["slots"][used]] = features["slot_targets"][used]
        return [
            Example(vocab.decode(given[real]), vocab.decode(wanted[real]))
            for given, wanted, real in zip(tokens, filled, segments > 0, strict=True)
        ]

    def predict(self, apply: Apply, batch: Batch) -> jax.Array:
        """[B, slots] the most likely ids at the slots."""
        readout = apply(batch, rng=None)["logits"].take(batch["slots"])
        return readout.logits().argmax(axis=-1).astype(jnp.int32)


def _slots(chosen: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(columns of the chosen tokens [B, most] int32, ascending, then 0; which of them are in use;
    places of the chosen tokens in the flat array).
    """
    flat = np.flatnonzero(chosen)
    used = np.arange(most) < np.count_nonzero(chosen, axis=1)[:, None]
    slots = np.zeros(used.shape, np.int32)
    slots[used] = flat % chosen.shape[1]
    return slots, used, flat
