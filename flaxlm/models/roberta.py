"""RoBERTa (Liu et al. 2019, "RoBERTa: A robustly optimized BERT pretraining approach",
arXiv:1907.11692).

BERT without types, pooler and pair head. Its position table has two rows more than there are
positions: fairseq counts from the padding id, 1, whose own row nothing reads. Our `positions` start
at 0 as everywhere and the table is read from row 2 on.

Parity: transformers' RobertaForMaskedLM (convert/roberta.py, tests/parity/make_bert.py), itself
equal to fairseq. Initial values as fairseq: normal, 0.02.
Shapes as models/bert.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.nn.initializers import normal

from flaxlm.models import bert
from flaxlm.nn import heads, parser
from flaxlm.nn.positions import Learned, Position

OFFSET = 2  # rows of the table before that of position 0


@dataclass(frozen=True)
class Size(bert.Size):
    """The numbers of a RoBERTa; attributes as `bert.Size`, `length` without the two rows."""

    vocab: int = 50265
    types: int = 0
    eps: float = 1e-5


SIZES: dict[str, Size] = {
    "tiny": Size(2, 48, 96, 4, vocab=500, length=64, dropout=0.0, attention_dropout=0.0),
    "base": Size(12, 768, 3072, 12),
    "large": Size(24, 1024, 4096, 16),
}

# Of the published checkpoints, head included.
PARAMETERS: dict[str, int] = {"base": 124_696_665, "large": 355_411_033}


class Model(bert.MaskedLanguageModel):
    """RoBERTa: reads tokens, segments, positions. Attributes and outputs as
    `bert.MaskedLanguageModel`.
    """

    activation: Callable = bert.gelu_erf

    kernel_init = staticmethod(normal(0.02))

    def encoding(self) -> Position:
        if self.positions is None:
            rows = self.size.length + OFFSET
            return Learned(rows, kernel_init=self.kernel_init, offset=OFFSET, parent=None)
        return super().encoding()


class Body(Model, bert.Body):
    """RoBERTa without its head; outputs as `bert.Body`."""


class Encoder(Body, bert.Encoder):
    """RoBERTa without its head but with a pooler, as transformers' bare RobertaModel; outputs as
    `bert.Encoder`.
    """


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Body`: <s> through a dense layer and tanh."""

    activation = staticmethod(jnp.tanh)


class Chooser(heads.PooledClassifier):
    """One number for each ending of a multiple choice, on an `Encoder`."""

    classes: int = 1


class Tagger(heads.TokenClassifier):
    """Tags of all tokens, on a `Body`."""


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""


class Parser(parser.Parser):
    """Arcs between words, on a `Body`."""
