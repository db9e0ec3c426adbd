"""ALBERT (Lan et al. 2020, "ALBERT: A lite BERT for self-supervised learning of language
representations", arXiv:1909.11942).

BERT with tables of width E below the width of the layers, one projection after them, and layers
that have their parameters in common (sections 3.1, table 4). `sharing` is the paper's choice:
`ALL` (the published models), `ATTENTION` (one attention, a feed-forward layer per layer), `MLP`
(the opposite), `NONE`. A norm belongs to what it follows. Sharing saves parameters, not work.

  Model                the published pretraining model: masked tokens, order of two sentences.
  MaskedLanguageModel  the same without pooler and pair head.
  Encoder              the same without heads.

Parity: transformers' AlbertForPreTraining, AlbertForMaskedLM (convert/albert.py,
tests/parity/make_bert.py). The dropout of a feed-forward layer's result is that of the published
code; transformers leaves it out.
Shapes as models/bert.py.
"""

from dataclasses import dataclass

from flaxlm.errors import ConfigError, nearest
from flaxlm.models import bert

NONE: tuple[str, ...] = ()
ATTENTION = ("attention", "attention_norm")
MLP = ("mlp", "mlp_norm")
ALL = (*ATTENTION, *MLP)


@dataclass(frozen=True)
class Size(bert.Size):
    """The numbers of an ALBERT; attributes as `bert.Size`. A model with embed_width 0 has tables as
    wide as its layers and no projection, one with embed_width = width has a square one.
    """

    vocab: int = 30000
    embed_width: int = 128
    dropout: float = 0.0
    attention_dropout: float = 0.0


_V1 = dict(dropout=0.1, attention_dropout=0.1)

SIZES: dict[str, Size] = {
    "tiny": Size(3, 48, 96, 4, vocab=500, length=64, embed_width=24),
    "base": Size(12, 768, 3072, 12, **_V1),
    "large": Size(24, 1024, 4096, 16, **_V1),
    "xlarge": Size(24, 2048, 8192, 16, **_V1),
    "xxlarge": Size(12, 4096, 16384, 64),
    "base_v2": Size(12, 768, 3072, 12),
    "large_v2": Size(24, 1024, 4096, 16),
    "xlarge_v2": Size(24, 2048, 8192, 16),
    "xxlarge_v2": Size(12, 4096, 16384, 64),
}

# Encoder with pooler, without the heads.
PARAMETERS: dict[str, int] = {
    name + version: count
    for version in ("", "_v2")
    for name, count in {
        "base": 11_683_584,
        "large": 17_683_968,
        "xlarge": 58_724_864,
        "xxlarge": 222_595_584,
    }.items()
}


class MaskedLanguageModel(bert.MaskedLanguageModel):
    """ALBERT without pooler and pair head; inputs and outputs as `bert.MaskedLanguageModel`.

    Attributes:
      sharing: parts of a layer whose parameters all layers have in common.
    """

    sharing: tuple[str, ...] = ALL

    def encode(self, x_BLD, segments_BL, bias, rotation, *, train):
        for part in self.sharing:
            if part not in ALL:
                raise ConfigError(f"model.sharing: a layer has no {part!r}; {nearest(part, ALL)}")
        return bert.encode(
            self.size, x_BLD, segments_BL, bias, rotation,
            activation=self.activation, compute=self.compute, train=train,
            kernel_init=self.kernel_init, common=self.sharing,
        )  # fmt: skip


class Model(MaskedLanguageModel, bert.Model):
    """ALBERT as published for pretraining; inputs and outputs as `bert.Model`, pair_logits being
    those of the order of two sentences.
    """


class Body(MaskedLanguageModel, bert.Body):
    """ALBERT without heads and pooler; outputs as `bert.Body`."""


class Encoder(Body, bert.Encoder):
    """ALBERT without heads; outputs as `bert.Encoder`."""


class Classifier(bert.Classifier):
    """Classes of a row, on an `Encoder`."""


class Chooser(bert.Chooser):
    """One number for each ending of a multiple choice."""


class Tagger(bert.Tagger):
    """Tags of all tokens, on a `Body`."""


class SpanReader(bert.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""
