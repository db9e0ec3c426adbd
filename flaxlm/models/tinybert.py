"""TinyBERT (Jiao et al. 2020, "TinyBERT: distilling BERT for natural language understanding",
arXiv:1909.10351).

A narrow BERT with one more matrix, `fit`, that brings its hidden states to the teacher's width. One
`fit` serves the embedding and all layers, with a bias, as in the published code (the paper has two,
without).

Parity: transformers' BertForPreTraining with erf GELU (tests/parity/make_electra.py); `fit` is the
published code's fit_dense. Shapes as models/bert.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.models import bert
from flaxlm.nn.linear import Linear


@dataclass(frozen=True)
class Size(bert.Size):
    """The numbers of a TinyBERT, as `bert.Size`.

    Attributes:
      teacher_width: D of the teacher.
    """

    teacher_width: int = 768

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_width < 1:
            raise ConfigError(f"model.size.teacher_width={self.teacher_width}: at least 1")


SIZES: dict[str, Size] = {
    "tiny": Size(
        1, 24, 48, 4, vocab=500, length=64, dropout=0.0, attention_dropout=0.0, teacher_width=48
    ),
    "4l": Size(4, 312, 1200, 12),
    "6l": Size(6, 768, 3072, 12),
}

# Of `Model`: encoder, pooler, both heads and `fit` (the published code's TinyBertForPreTraining).
PARAMETERS: dict[str, int] = {"4l": 14_720_060, "6l": 68_169_788}


class Model(bert.Model):
    """TinyBERT for pretraining: attributes, inputs and outputs as its base class."""

    activation: Callable = bert.gelu_erf

    def setup(self):
        self.fitting = Linear(self.size.teacher_width, bert.init, name="fit")

    def pooled(self, hidden_BLD: jax.Array) -> dict:
        if self.is_initializing():
            self.fitting(hidden_BLD)
        return super().pooled(hidden_BLD)

    def fit(self, batch: Batch, *, train: bool) -> dict:
        """The output "fitted" [..., teacher's D]: batch["states"] [..., D], widened."""
        return {"fitted": self.fitting(batch["states"])}
