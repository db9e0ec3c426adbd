"""Distillation: a small student learns from a frozen teacher on the same input.

Distillation       DistilBERT (Sanh et al. 2019): the teacher's softened predictions, the student's
                   own masked LM, and the direction of the last hidden states.
LayerDistillation  TinyBERT (Jiao et al. 2020): attention scores, embeddings and hidden states layer
                   by layer (both stages), and the predictions of a task head (second stage).

The teacher is the experiment's frozen model "teacher"; it runs without dropout and gets no
gradient. The published code of TinyBERT leaves the teacher's dropout on, by oversight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy, soft_cross_entropy
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.on_masked import OnMasked


@dataclass(frozen=True, kw_only=True)
class Distillation(OnMasked):
    """DistilBERT's three losses, over models with the outputs "logits" and "hidden".

    Attributes:
      soft: weight of the KL divergence from the teacher over all real tokens, times temperature^2.
      hard: weight of the masked LM.
      cosine: weight of 1 - cosine of the last hidden states over all real tokens; 0 where the
        widths differ.
      temperature: of both softmaxes.
    """

    soft: float = 5.0
    hard: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ConfigError(f"objective.temperature={self.temperature}: must be above 0")

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """Student and teacher on one input; adds "mlm_nll" [B, K], "soft" and "cosine" [B, L]."""
        outputs = apply(batch, rng=rng)
        teacher = apply.frozen["teacher"](batch, rng=None)
        nll, _ = cross_entropy(outputs["logits"].take(batch["slots"]), batch["slot_targets"])
        soft = soft_cross_entropy(outputs["logits"], teacher["logits"], self.temperature)
        outputs = {**outputs, "mlm_nll": nll, "soft": soft * self.temperature**2}
        if self.cosine:
            mine, other = outputs["hidden"], jax.lax.stop_gradient(teacher["hidden"])
            if mine.shape != other.shape:
                raise ConfigError(
                    f"objective.cosine compares hidden states of widths {mine.shape[-1]} (student) "
                    f"and {other.shape[-1]} (teacher): make them equal, or --objective.cosine=0"
                )
            outputs["cosine"] = 1 - _cosine(mine, other)
        return outputs

    @property
    def terms(self) -> Mapping[str, Term]:
        terms = {
            "soft": Term(lambda outputs, batch: outputs["soft"], "weights", scale=self.soft),
            "mlm": Term(lambda outputs, batch: outputs["mlm_nll"], "slot_weights", self.hard),
        }
        if self.cosine:
            terms["cosine"] = Term(
                lambda outputs, batch: outputs["cosine"], "weights", scale=self.cosine
            )
        return terms


@dataclass(frozen=True, kw_only=True)
class LayerDistillation(OnMasked):
    """TinyBERT's losses, layer by layer.

    Student layer i learns from teacher layer i k + k - 1 and student state i from teacher state
    i k, where k is the ratio of the depths and state 0 is the embedding (the published code; the
    paper's map g(m) = k m is the same). The student brings its hidden states to the teacher's width
    through its method "fit".

    Attributes:
      attention: weight of the mean squared difference of the attention scores, before the softmax.
      hidden: weight of that of the embeddings and hidden states.
      prediction: weight of the soft cross-entropy of "class_logits" (a task head); the published
        code averages it over the batch and the classes.
      temperature: of the predictions.
    """

    attention: float = 1.0
    hidden: float = 1.0
    prediction: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ConfigError(f"objective.temperature={self.temperature}: must be above 0")
        if not (self.attention or self.hidden or self.prediction):
            raise ConfigError("objective: attention, hidden and prediction are all 0")

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """Student and teacher with all their layers; adds one [B, L] or [B] array per loss."""
        inside = bool(self.attention or self.hidden)
        outputs = apply(batch, rng=rng, layers=inside)
        teacher = apply.frozen["teacher"](batch, rng=None, layers=inside)
        teacher = jax.tree.map(jax.lax.stop_gradient, dict(teacher))
        found = dict(outputs)
        if self.attention:
            mine, other = outputs["layers/attention/scores"], teacher["layers/attention/scores"]
            other = other[_ratio(mine, other) - 1 :: _ratio(mine, other)]
            if mine.shape != other.shape:
                raise ConfigError(
                    f"objective.attention compares {mine.shape[2]} heads (student) with "
                    f"{other.shape[2]} (teacher): make them equal, or --objective.attention=0"
                )
            # The published code zeroes what the mask has made smaller than -100, on both sides.
            seen = (batch["segments"] > 0)[None, :, None, None, :]
            difference = jnp.where(seen, mine - other, 0.0)
            found["attention_loss"] = (difference**2).mean(axis=(2, 4)).sum(axis=0)
        if self.hidden:
            every = self.fitted(apply, outputs, rng)
            states = jnp.concatenate([teacher["embedded"][None], teacher["layers/hidden"]])
            other = states[:: _ratio(outputs["layers/hidden"], teacher["layers/hidden"])]
            difference = (every - other).astype(jnp.float32)
            found["hidden_loss"] = (difference**2).mean(axis=-1).sum(axis=0)
        if self.prediction:
            log_p = jax.nn.log_softmax(outputs["class_logits"] / self.temperature, axis=-1)
            wanted = jax.nn.softmax(teacher["class_logits"] / self.temperature, axis=-1)
            found["prediction_loss"] = -(wanted * log_p).mean(axis=-1)
        return found

    def fitted(self, apply: Apply, outputs: Outputs, rng) -> jax.Array:
        """[N + 1, B, L, teacher's D]: the student's embedding and hidden states, widened."""
        states = jnp.concatenate([outputs["embedded"][None], outputs["layers/hidden"]])
        return apply({"states": states}, rng=rng, method="fit")["fitted"]

    @property
    def terms(self) -> Mapping[str, Term]:
        weights = {"attention": "weights", "hidden": "weights", "prediction": "label_weights"}
        return {
            name: Term(
                lambda outputs, batch, name=name: outputs[f"{name}_loss"],
                feature,
                scale=getattr(self, name),
            )
            for name, feature in weights.items()
            if getattr(self, name)
        }

    def predict(self, apply: Apply, batch: Batch) -> None:
        """Nothing to read: the student has not learned to predict tokens."""
        return None


def _ratio(student: jax.Array, teacher: jax.Array) -> int:
    """How many layers of the teacher go to one of the student."""
    mine, other = student.shape[0], teacher.shape[0]
    if other % mine:
        raise ConfigError(
            f"a student of {mine} layers cannot be matched with a teacher of {other}: its depth "
            "must divide the teacher's"
        )
    return other // mine


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return (a * b).sum(axis=-1) / jnp.maximum(norms, 1e-8)
