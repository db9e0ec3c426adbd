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
from flaxlm.objectives.examples import check_count, check_width, mean_per_example
from flaxlm.objectives.texts import truncated
from flaxlm.objectives.whole_rows import OfClasses, WholeRows


@dataclass(frozen=True, kw_only=True)
class TextObjective(WholeRows):
    """Base of the objectives of a text or a pair.

    Attributes:
      stride: 0 cuts a long text; else it goes over as many rows as it needs, each so many tokens
        on, and its answer is the mean of theirs.
      both_orders: whether the model reads a pair in both orders, for what a pair has no order
        (GPT-1's similarity): the logits are added, which is a head without a bias on the sum of the
        two states.
    """

    stride: int = 0
    both_orders: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.stride < 0:
            raise ConfigError(
                f"objective.stride={self.stride}: a number of tokens; 0 cuts long texts"
            )
        if self.stride and self.both_orders:
            raise ConfigError("objective.both_orders: a pair is cut, make objective.stride 0")

    @property
    def groups(self):
        return 2 if self.both_orders else 1

    def rows(self, examples, vocab, length: int) -> tuple[list, list[int]]:
        """(rows, the example of each)."""
        if not self.both_orders:
            return self.rows_of_texts(examples, vocab, length, stride=self.stride)
        if any(example["pair"] is None for example in examples):
            raise ConfigError("objective.both_orders: an example has one text, which has no order")
        sides = [
            vocab.encode_batch([example[name] for example in examples]) for name in ("text", "pair")
        ]
        room = self.texts.room(2, length)
        rows = []
        for pair in zip(*sides, strict=True):
            pair = truncated(pair, room)
            rows.append([self.texts.around(vocab, *order)[0] for order in (pair, pair[::-1])])
        return rows, list(range(len(rows)))

    def encode(self, examples, form, vocab, length):
        rows, places = self.rows(examples, vocab, length)
        targets = self.labelled([examples[at] for at in places])
        return Encoded.of(rows, length=length, example=places, targets=targets)

    def read(self, apply: Apply, batch, rng, *, width: int) -> tuple[Outputs, jax.Array]:
        """(outputs of one call of the model, logits [B, width] fp32)."""
        outputs = self.call(apply, batch, rng)
        check_width(self, outputs["class_logits"], width)
        logits = outputs["class_logits"].astype(jnp.float32)
        return outputs, logits.reshape(-1, self.groups, width).sum(1)


@dataclass(frozen=True, kw_only=True)
class Classification(TextObjective, OfClasses):
    """Reads the output "class_logits" [B, classes].

    Attributes:
      classes: how many there are.
    """

    classes: int

    form = "Classes"

    def __post_init__(self):
        super().__post_init__()
        if self.classes < 2:
            raise ConfigError(f"objective.classes={self.classes}: at least 2")

    def check(self, form, *, name):
        super().check(form, name=name)
        check_count("classes", self.classes, task=name, there=len(form.labels))

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "class_log_probs" [B, classes]."""
        outputs, logits = self.read(apply, batch, rng, width=self.classes)
        return {**outputs, "class_log_probs": jax.nn.log_softmax(logits)}

    def predictions(self, answers, encoded, examples, form):
        """Probabilities: of several rows, their geometric mean."""
        means = mean_per_example(answers["class_log_probs"], encoded.example, len(examples))
        shares = np.exp(means)
        return (shares / shares.sum(1, keepdims=True)).tolist()


@dataclass(frozen=True, kw_only=True)
class Regression(TextObjective):
    """Reads the output "class_logits" [B, 1]: the number."""

    form = "Score"
    label = ("scores", np.float32)

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model; adds "score" [B]."""
        outputs, logits = self.read(apply, batch, rng, width=1)
        return {**outputs, "score": logits[:, 0]}

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "squared_error"."""
        return {
            "squared_error": Term(
                lambda outputs, batch: (outputs["score"] - batch["scores"]) ** 2, "label_weights"
            ),
            **self.language_terms,
        }

    def answers(self, outputs, batch):
        return {"score": outputs["score"]}

    def predictions(self, answers, encoded, examples, form):
        means = mean_per_example(answers["score"], encoded.example, len(examples))
        return np.clip(means, form.low, form.high).tolist()
