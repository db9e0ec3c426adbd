"""One of several endings of a text (Devlin et al. 2019, section 4.4; Zellers et al. 2018).

    row         [CLS] she opens the [SEP] door [SEP]  |  [CLS] she opens the [SEP] sky [SEP]
    class       0

Every ending makes a row of its own with the text; a head gives each one number, and the softmax
runs over the endings. The endings of an example lie side by side in one row of the batch, so that
batch, mesh and micro-batches never part them, and are folded into rows for the model.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxlm.data.encoded import Encoded
from flaxlm.errors import ConfigError
from flaxlm.objectives.base import Apply, Outputs
from flaxlm.objectives.examples import check_count, check_width
from flaxlm.objectives.texts import truncated
from flaxlm.objectives.whole_rows import OfClasses


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(OfClasses):
    """Reads the output "class_logits" [B, 1] of each ending.

    Attributes:
      choices: endings of an example.
    """

    choices: int

    form = "Choices"

    def __post_init__(self):
        super().__post_init__()
        if self.choices < 2:
            raise ConfigError(f"objective.choices={self.choices}: at least 2")

    @property
    def groups(self):
        return self.choices

    def check(self, form, *, name):
        super().check(form, name=name)
        check_count("choices", self.choices, task=name, there=form.count)

    def encode(self, examples, form, vocab, length):
        room = self.texts.room(2, length)
        texts = vocab.encode_batch([example["text"] for example in examples])
        endings = vocab.encode_batch([e for example in examples for e in example["endings"]])
        each = iter(endings)
        rows = [
            [
                self.texts.around(vocab, *truncated([text, next(each)], room))[0]
                for _ in range(self.choices)
            ]
            for text in texts
        ]
        targets = self.labelled(examples)
        return Encoded.of(rows, length=length, example=range(len(rows)), targets=targets)

    def forward(self, apply: Apply, batch, rng) -> Outputs:
        """One call of the model on [B * choices, L]; adds "class_log_probs" [B, choices]."""
        outputs = self.call(apply, batch, rng)
        check_width(self, outputs["class_logits"], 1)
        logits = outputs["class_logits"].astype(jnp.float32).reshape(-1, self.choices)
        return {**outputs, "class_log_probs": jax.nn.log_softmax(logits)}

    def predictions(self, answers, encoded, examples, form):
        return answers["class_log_probs"].argmax(axis=1).tolist()
