"""What objectives have in common whose head answers for a row as a whole: texts side by side in a
row become rows of their own for the model, and a causal model can go on learning its language
beside the task (Radford et al. 2018, section 3.2):

    tokens     <s> a man eats <e>
    targets    a man eats <e> -        next tokens, the same weight in all for every text
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.batch import Features
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.examples import ExampleObjective

# What the model reads of each of the texts of a row.
_FOLDED = (
    "tokens", "segments", "positions", "types", "decoder_tokens", "decoder_segments",
    "decoder_positions",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WholeRows(ExampleObjective):
    """Base of the objectives of rows.

    Attributes:
      language: factor of the language model's loss beside the task's, the mean over the tokens of a
        text and then over texts (GPT-1: 0.5); the model must have "logits" for it. 0 is off.
    """

    language: float = 0.0

    label: ClassVar[tuple[str, type]]  # the feature of an example's label, and its type

    def __post_init__(self):
        if not self.language >= 0:
            raise ConfigError(f"objective.language={self.language}: 0 or more (GPT-1: 0.5)")

    def prepare(self, rows, rng, vocab):
        features = super().prepare(rows, rng, vocab)
        return features | next_tokens(features, self.groups) if self.language else features

    def targets(self, rows, length):
        name, dtype = self.label
        return {name: np.zeros(rows, dtype), "label_weights": np.zeros(rows, np.float32)}

    def labelled(self, examples: Sequence[Mapping]) -> Features:
        """`targets` of rows with these examples; one without a label weighs nothing."""
        targets = self.targets(len(examples), 0)
        labels = [example["label"] for example in examples]
        targets[self.label[0]][:] = [0 if label is None else label for label in labels]
        targets["label_weights"][:] = [label is not None for label in labels]
        return targets

    def call(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model on [B * groups, L]; with `language` adds "language_nll" [B, W]."""
        count, width = batch["tokens"].shape
        shape = (count * self.groups, width // self.groups)
        read = batch
        if self.groups > 1:
            read = {name: batch[name].reshape(shape) for name in _FOLDED if name in batch}
            # Beside one another the texts were segments 1, 2, ...; a row of its own has one.
            segments = [name for name in read if name.endswith("segments")]
            read |= {name: (read[name] > 0).astype(jnp.int32) for name in segments}
        outputs = apply(read, rng=rng)
        if not self.language:
            return outputs
        nll, _ = cross_entropy(outputs["logits"], batch["targets"].reshape(shape))
        return {**outputs, "language_nll": nll.reshape(count, width)}

    @property
    def language_terms(self) -> Mapping[str, Term]:
        """The loss "language_nll", if it has a factor."""
        if not self.language:
            return {}
        return {
            "language_nll": Term(
                lambda outputs, batch: outputs["language_nll"], "weights", scale=self.language
            )
        }


@dataclass(frozen=True, kw_only=True)
class OfClasses(WholeRows):
    """Base of the objectives whose `forward` makes "class_log_probs" [B, C]."""

    label = ("classes", np.int32)

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "nll"; as a metric "right", the share of right answers."""
        return {
            "nll": Term(_nll, "label_weights"),
            "right": Term(_hit, "label_weights", scale=0.0),
            **self.language_terms,
        }

    def answers(self, outputs, batch):
        return {"class_log_probs": outputs["class_log_probs"]}


def _nll(outputs: Outputs, batch) -> jax.Array:
    """[B] of the feature "classes" under "class_log_probs"."""
    picked = jnp.take_along_axis(outputs["class_log_probs"], batch["classes"][:, None], axis=1)
    return -picked[:, 0]


def _hit(outputs: Outputs, batch) -> jax.Array:
    """[B] 1 where the likeliest class is the right one."""
    return (outputs["class_log_probs"].argmax(axis=1) == batch["classes"]).astype(jnp.float32)


def next_tokens(features: Features, groups: int) -> Features:
    """The features targets and weights [B, W] of rows of `groups` texts: at every token the one
    behind it in its text; the weights of a text sum to 1.
    """
    tokens, segments = features["tokens"], features["segments"]
    count, width = tokens.shape
    targets, behind = np.zeros_like(tokens), np.zeros_like(segments)
    targets[:, :-1], behind[:, :-1] = tokens[:, 1:], segments[:, 1:]
    real = (segments > 0) & (segments == behind)
    per_text = real.reshape(count, groups, width // groups).sum(axis=2)
    share = 1 / np.maximum(per_text, 1).repeat(width // groups, axis=1)
    return {
        "targets": np.where(real, targets, 0).astype(np.int32),
        "weights": (real * share).astype(np.float32),
    }
