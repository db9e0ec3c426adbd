"""One of several classes, or a number, for a text or a pair of texts (Devlin et al. 2019, section
4.1).

    text        [CLS] a man eats [SEP] someone eats [SEP]
    class       0                                              entailment

The head reads the vector of a row; cross-entropy over classes, squared error of a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.encoded import Encoded
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Apply, Outputs, Term
from flaxlm.objectives.examples import (
    ExampleObjective,
    check_count,
    check_width,
    mean_per_example,
)


@dataclass(frozen=True, kw_only=True)
class Classification(ExampleObjective):
    """Reads the output "class_logits" [B, classes].

    Attributes:
      classes: how many there are.
      stride: 0 cuts a long text; else it goes over as many rows as it needs, each so many tokens
        on, and its answer is the mean of theirs.
    """

    classes: int
    stride: int = 0

    form = "Classes"

    def __post_init__(self):
        if self.classes < 2:
            raise ConfigError(f"objective.classes={self.classes}: at least 2")
        check_stride(self.stride)

    def check(self, form, *, name):
        super().check(form, name=name)
        check_count("classes", self.classes, task=name, there=len(form.labels))

    def targets(self, rows, length):
        return {
            "classes": np.zeros(rows, np.int32),
            "label_weights": np.zeros(rows, np.float32),
        }

    def encode(self, examples, form, vocab, length):
        rows, places = self.rows_of_texts(examples, vocab, length, stride=self.stride)
        targets = self.targets(len(rows), length)
        labels = [examples[at]["label"] for at in places]
        targets["classes"][:] = [label or 0 for label in labels]
        targets["label_weights"][:] = [label is not None for label in labels]
        return Encoded.of(rows, length=length, example=places, targets=targets)

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "class_log_probs" [B, classes]."""
        outputs = apply(batch, rng=rng)
        logits = outputs["class_logits"].astype(jnp.float32)
        check_width(self, logits, self.classes)
        return {**outputs, "class_log_probs": jax.nn.log_softmax(logits)}

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "nll"; as a metric "right", the share of right answers."""
        return {
            "nll": Term(nll_of_class, "label_weights"),
            "right": Term(hit_of_class, "label_weights", scale=0.0),
        }

    def answers(self, outputs, batch):
        return {"class_log_probs": outputs["class_log_probs"]}

    def predictions(self, answers, encoded, examples, form):
        means = mean_per_example(answers["class_log_probs"], encoded.example, len(examples))
        return means.argmax(axis=1).tolist()


@dataclass(frozen=True, kw_only=True)
class Regression(ExampleObjective):
    """Reads the output "class_logits" [B, 1]: the number.

    Attributes:
      stride: as of `Classification`.
    """

    stride: int = 0

    form = "Score"

    def __post_init__(self):
        check_stride(self.stride)

    def targets(self, rows, length):
        return {
            "scores": np.zeros(rows, np.float32),
            "label_weights": np.zeros(rows, np.float32),
        }

    def encode(self, examples, form, vocab, length):
        rows, places = self.rows_of_texts(examples, vocab, length, stride=self.stride)
        targets = self.targets(len(rows), length)
        labels = [examples[at]["label"] for at in places]
        targets["scores"][:] = [0.0 if label is None else label for label in labels]
        targets["label_weights"][:] = [label is not None for label in labels]
        return Encoded.of(rows, length=length, example=places, targets=targets)

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "score" [B]."""
        outputs = apply(batch, rng=rng)
        check_width(self, outputs["class_logits"], 1)
        return {**outputs, "score": outputs["class_logits"][:, 0].astype(jnp.float32)}

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "squared_error"."""
        return {
            "squared_error": Term(
                lambda outputs, batch: (outputs["score"] - batch["scores"]) ** 2, "label_weights"
            )
        }

    def answers(self, outputs, batch):
        return {"score": outputs["score"]}

    def predictions(self, answers, encoded, examples, form):
        means = mean_per_example(answers["score"], encoded.example, len(examples))
        return np.clip(means, form.low, form.high).tolist()


def check_stride(stride: int) -> None:
    if stride < 0:
        raise ConfigError(f"objective.stride={stride}: a number of tokens; 0 cuts long texts")


def nll_of_class(outputs: Outputs, batch) -> jax.Array:
    """[B] of the feature "classes" under "class_log_probs"."""
    picked = jnp.take_along_axis(outputs["class_log_probs"], batch["classes"][:, None], axis=1)
    return -picked[:, 0]


def hit_of_class(outputs: Outputs, batch) -> jax.Array:
    """[B] 1 where the likeliest class is the right one."""
    return (outputs["class_log_probs"].argmax(axis=1) == batch["classes"]).astype(jnp.float32)
