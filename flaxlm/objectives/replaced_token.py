"""Replaced token detection, ELECTRA's objective (Clark et al. 2020, section 2): which tokens did a
small generator put there?

    text           the chef cooked the meal
    generator      [MASK] chef [MASK] the meal     predicts the masked tokens (masked LM)
    discriminator  the chef ate the meal           a draw from the generator stands at each slot
    labels         0   0    1   0   0              a draw equal to the original counts as 0

No gradient passes through the draw: the generator learns from its masked LM alone, the
discriminator from all real tokens, [CLS] and [SEP] included. Slots are drawn without replacement;
the published code draws them with replacement (17.7 distinct ones of 19) and averages the ids where
two draws meet, which can put a third, unrelated token there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy, sample
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.on_masked import OnMasked


@dataclass(frozen=True, kw_only=True)
class ReplacedToken(OnMasked):
    """A generator's masked LM and a discriminator's replaced token detection, trained together.

    Calls the model's methods "generate" (needs "logits") and "discriminate" (needs "replaced").

    Attributes:
      masked: what the generator predicts; the published masking replaces 85 % of the slots by the
        mask and leaves 15 % as they are.
      weight: of the discriminator's loss (section 3.1: 50).
    """

    masked: MaskedLM = field(default_factory=lambda: MaskedLM(mask=0.85, random=0.0))
    weight: float = 50.0

    def __post_init__(self):
        if self.weight <= 0:
            raise ConfigError(f"objective.weight={self.weight}: must be above 0 (ELECTRA uses 50)")

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """Generator, draw, discriminator; adds "mlm_nll" [B, K] and "labels" [B, L].

        Evaluation draws as well, always with the same key.
        """
        draws, first, second = (
            [jax.random.key(0), None, None] if rng is None else jax.random.split(rng, 3)
        )
        readout = apply(batch, rng=first, method="generate")["logits"].take(batch["slots"])
        targets, used = batch["slot_targets"], batch["slot_weights"] > 0
        nll, _ = cross_entropy(readout, targets)
        drawn = jnp.where(used, sample(readout, draws), targets)
        original = put(batch["tokens"], batch["slots"], targets, used)
        corrupted = put(original, batch["slots"], drawn, used)
        found = apply({**batch, "tokens": corrupted}, rng=second, method="discriminate")
        labels = (corrupted != original).astype(jnp.float32)
        loss = optax.sigmoid_binary_cross_entropy(found["replaced"], labels)
        hit = (found["replaced"] > 0) == (labels > 0)
        return {
            **found,
            "mlm_nll": nll,
            "labels": labels,
            "corrupted": corrupted,
            "replaced_nll": loss,
            "replaced_hit": hit.astype(jnp.float32),
        }

    @property
    def terms(self) -> Mapping[str, Term]:
        """The losses "mlm" of the generator and "replaced" of the discriminator; as metrics the
        share of tokens that the discriminator gets right, and the share that was replaced.
        """
        return {
            "mlm": Term(lambda outputs, batch: outputs["mlm_nll"], "slot_weights"),
            "replaced": Term(
                lambda outputs, batch: outputs["replaced_nll"], "weights", scale=self.weight
            ),
            "replaced_accuracy": Term(
                lambda outputs, batch: outputs["replaced_hit"], "weights", scale=0.0
            ),
            "replaced_share": Term(lambda outputs, batch: outputs["labels"], "weights", scale=0.0),
        }

    def predict(self, apply: Apply, batch: Batch) -> jax.Array:
        """[B, K] the generator's most likely ids at the slots."""
        readout = apply(batch, rng=None, method="generate")["logits"].take(batch["slots"])
        return readout.logits().argmax(axis=-1).astype(jnp.int32)


def put(tokens: jax.Array, slots: jax.Array, ids: jax.Array, used: jax.Array) -> jax.Array:
    """[B, L] `tokens` with `ids` [B, K] at the positions `slots` that are `used`."""
    outside = tokens.shape[1]  # a position that does not exist: the write is dropped

    def row(tokens, slots, ids):
        return tokens.at[slots].set(ids, mode="drop")

    return jax.vmap(row)(tokens, jnp.where(used, slots, outside), ids)
