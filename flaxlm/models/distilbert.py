"""DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108).

BERT with half of the layers, without token types and pooler; the result of the attention is not
dropped out. Hugging Face's code is the original.

Parity: transformers' DistilBertForMaskedLM (convert/distilbert.py, tests/parity/make_electra.py).
Shapes as models/bert.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from jax.nn.initializers import normal, zeros

from flaxlm.models import bert
from flaxlm.nn import heads, masks
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, post_norm
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.stack import stack

_init = normal(0.02)


@dataclass(frozen=True)
class Size(bert.Size):
    """The numbers of a DistilBERT, as `bert.Size`; there are no token types."""

    types: int = 0


SIZES: dict[str, Size] = {
    "tiny": Size(1, 48, 96, 4, vocab=500, length=64, dropout=0.0, attention_dropout=0.0),
    "base_uncased": Size(6, 768, 3072, 12),
    "base_cased": Size(6, 768, 3072, 12, vocab=28996),
}

# Of `Model`, the head included.
PARAMETERS: dict[str, int] = {"base_uncased": 66_985_530, "base_cased": 65_812_036}

# Layers of a 12-layer teacher that the student begins with (the published extraction script).
TEACHER_LAYERS = (0, 2, 4, 7, 9, 11)


class Model(bert.MaskedLanguageModel):
    """DistilBERT with its masked token head: reads tokens, segments, positions.

    Attributes and outputs as its base class.
    """

    activation: Callable = bert.gelu_erf

    def encode(self, x_BLD, segments_BL, bias, rotation, *, train) -> jax.Array:
        """The layers, as `bert.encode`."""
        size = self.size
        attention = partial(
            Attention,
            size.heads,
            size.head_dim,
            kernel_init=_init,
            bias_init=zeros,
            scale=size.head_dim**-0.5,
            dropout=partial(Dropout, size.attention_dropout),
        )
        mlp = partial(
            MLP,
            size.mlp,
            self.activation,
            kernel_init=_init,
            bias_init=zeros,
            out_dropout=partial(Dropout, size.dropout),
        )
        return stack(
            Block(attention, mlp, partial(LayerNorm, size.eps), post_norm, name="layers"),
            x_BLD,
            masks.same_segment(segments_BL),
            bias,
            rotation,
            depth=size.depth,
            compute=self.compute,
            train=train,
        )


class Body(Model, bert.Body):
    """DistilBERT without its head; outputs as `bert.Body`."""


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Body`: [CLS] through a dense layer and ReLU."""

    dropout: float = 0.2

    activation = staticmethod(jax.nn.relu)
    drops_first = False
    kernel_init = staticmethod(_init)


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1


class Tagger(heads.TokenClassifier):
    """Tags of all tokens, on a `Body`."""

    kernel_init = staticmethod(_init)


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""

    dropout: float = 0.1

    kernel_init = staticmethod(_init)
