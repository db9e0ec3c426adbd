"""ELECTRA (Clark et al. 2020, "ELECTRA: pre-training text encoders as discriminators rather than
generators", arXiv:2003.10555).

Two BERT encoders on one set of embeddings: a small generator predicts masked tokens, a
discriminator says of every token whether the generator put it there.

  Model          both, as they are pretrained together.
  Generator      the generator alone: a masked language model.
  Discriminator  the discriminator alone.
  Body           the same without its head: what is fine-tuned, under `Classifier`, `Chooser`,
                 `Tagger` or `SpanReader`.

Word, position and type tables and their norm are shared; each net has its own change of width where
the embedding is not as wide as itself. erf GELU, no pooler.

Parity: transformers' ElectraForMaskedLM and ElectraForPreTraining (convert/electra.py,
tests/parity/make_electra.py). Initial values as the published code: truncated normal 0.02, but
Glorot-uniform for the changes of width and the last layer of the discriminator.
Shapes: `B` batch, `L` length, `D` width, `E` width of the embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.models import bert
from flaxlm.nn import heads, parser
from flaxlm.nn.compute import Compute
from flaxlm.nn.embed import padded
from flaxlm.nn.linear import Linear
from flaxlm.nn.positions import Learned

_glorot = glorot_uniform()


@dataclass(frozen=True)
class Size:
    """The numbers of an ELECTRA.

    Attributes:
      depth: layers of either net.
      width, mlp, heads: of the discriminator.
      embed_width: E, of the shared tables.
      generator_width, generator_mlp, generator_heads: of the generator.
      vocab, length, types, dropout, attention_dropout, eps: as `bert.Size`.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    embed_width: int
    generator_width: int
    generator_mlp: int
    generator_heads: int
    vocab: int = 30522
    length: int = 512
    types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self):
        for name in ("embed_width", "generator_width", "generator_mlp", "generator_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        if self.generator_width % self.generator_heads:
            raise ConfigError(
                f"model.size.generator_heads={self.generator_heads} does not divide "
                f"model.size.generator_width={self.generator_width}"
            )
        _ = self.discriminator  # checks the rest

    @property
    def discriminator(self) -> bert.Size:
        """Of the discriminator alone."""
        return self._net(self.width, self.mlp, self.heads)

    @property
    def generator(self) -> bert.Size:
        """Of the generator alone."""
        return self._net(self.generator_width, self.generator_mlp, self.generator_heads)

    def _net(self, width: int, mlp: int, heads: int) -> bert.Size:
        return bert.Size(
            self.depth,
            width,
            mlp,
            heads,
            vocab=self.vocab,
            length=self.length,
            types=self.types,
            embed_width=0 if self.embed_width == width else self.embed_width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            eps=self.eps,
        )


SIZES: dict[str, Size] = {
    "tiny": Size(
        2, 48, 96, 4, 32, 16, 32, 2, vocab=500, length=64, dropout=0.0, attention_dropout=0.0
    ),
    "small": Size(12, 256, 1024, 4, 128, 64, 256, 1),
    # The released small checkpoint has a generator as large as its discriminator.
    "small_released": Size(12, 256, 1024, 4, 128, 256, 1024, 4),
    "base": Size(12, 768, 3072, 12, 768, 256, 1024, 4),
    "large": Size(24, 1024, 4096, 16, 1024, 256, 1024, 4),
}

# Of `Model`: both nets and their heads, the shared tables counted once.
PARAMETERS: dict[str, int] = {
    "small": 14_196_219,
    "small_released": 23_122_875,
    "base": 119_386_427,
    "large": 354_655_291,
}


class _Tower(nn.Module):
    """One net above the embeddings. Parameters: (widen,) layers and those of its head."""

    size: bert.Size
    compute: Compute = Compute()

    def hidden(self, x_BLE: jax.Array, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """[B, L, D] input of the first layer and output of the last; for a compact method."""
        if self.size.embed_width:
            x_BLE = Linear(self.size.width, _glorot, name="widen")(x_BLE)
        segments = batch["segments"]
        return x_BLE, bert.encode(
            self.size, x_BLE, segments, activation=bert.gelu_erf, compute=self.compute, train=train
        )


class _GeneratorTower(_Tower):
    @nn.compact
    def __call__(self, x_BLE, table_VE, batch, *, train) -> Readout:
        size = self.size
        _, hidden_BLD = self.hidden(x_BLE, batch, train)
        head = bert.MaskedHead(size.vocab, size.embedding, bert.gelu_erf, size.eps, name="head")
        return head(hidden_BLD, table_VE)


class _DiscriminatorTower(_Tower):
    @nn.compact
    def __call__(self, x_BLE, batch, *, train) -> dict:
        return self.judged(x_BLE, batch, train)

    def judged(self, x_BLE: jax.Array, batch: Batch, train: bool) -> dict:
        """The outputs of a discriminator; for a compact method."""
        embedded_BLD, hidden_BLD = self.hidden(x_BLE, batch, train)
        x_BLD = bert.gelu_erf(Linear(self.size.width, bert.init, name="dense")(hidden_BLD))
        out = Linear(1, _glorot, axes=("embed", "types"), name="replaced")
        return {
            "hidden": hidden_BLD,
            "embedded": embedded_BLD,
            "replaced": out(x_BLD)[..., 0].astype(jnp.float32),
        }


class Model(nn.Module):
    """Generator and discriminator on shared embeddings: reads tokens, segments, positions, types.

    Attributes:
      size: the numbers.
      compute: how to compute.
    """

    size: Size
    compute: Compute = Compute()

    def setup(self):
        size = self.size
        # The dropout, norm and tables of either net's size are the same; only the widths differ.
        shared = size.discriminator
        positions = Learned(size.length, kernel_init=bert.init, parent=None)
        self.embed = bert.Embeddings(shared, positions, self.compute.type)
        self.generator = _GeneratorTower(size.generator, self.compute)
        self.discriminator = _DiscriminatorTower(shared, self.compute)

    def generate(self, batch: Batch, *, train: bool) -> dict:
        """Logits: Readout [B, L, E] of the generator."""
        x_BLE = self.embed(batch, train=train)
        return {"logits": self.generator(x_BLE, self.embed.table_VE, batch, train=train)}

    def discriminate(self, batch: Batch, *, train: bool) -> dict:
        """Of the discriminator: replaced [B, L] fp32 logits, hidden and embedded [B, L, D]."""
        return self.discriminator(self.embed(batch, train=train), batch, train=train)

    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Both nets on the same input: the outputs of `generate` and of `discriminate`."""
        return self.generate(batch, train=train) | self.discriminate(batch, train=train)

    @property
    def longest(self) -> int:
        """Rows of the position table."""
        return self.size.length

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}: both nets once."""
        size, (rows, length) = self.size, shapes["tokens"]
        slots = shapes["slots"][1] if "slots" in shapes else length
        total = 0
        for net in (size.generator, size.discriminator):
            total += net.depth * bert.layer_flops(net, length)
            total += 2 * length * net.embed_width * net.width
        head = 2 * size.embed_width * (length * size.generator_width + slots * padded(size.vocab))
        return float(rows * (total + head + 2 * length * size.width * (size.width + 1)))


class Generator(bert.MaskedLanguageModel):
    """The generator alone, with tables of its own; attributes and outputs as its base class."""

    activation: Callable = bert.gelu_erf


class _Alone(_Tower):
    """A discriminator with tables of its own."""

    def embedded(self, batch: Batch, train: bool) -> jax.Array:
        """[B, L, E]; for a compact method."""
        positions = Learned(self.size.length, kernel_init=bert.init, parent=None)
        embed = bert.Embeddings(self.size, positions, self.compute.type, name="embed")
        return embed(batch, train=train)

    @property
    def longest(self) -> int:
        """Rows of the position table."""
        return self.size.length

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of the layers of one batch {feature: shape}."""
        size, (rows, length) = self.size, shapes["tokens"]
        widen = 2 * length * size.embed_width * size.width
        return float(rows * (size.depth * bert.layer_flops(size, length) + widen))


class Discriminator(_Alone, _DiscriminatorTower):
    """The discriminator alone: reads tokens, segments, positions, types.

    Attributes:
      size: the numbers; embed_width 0 if the embedding is as wide as the layers.
      compute: how to compute.
    """

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs replaced [B, L] fp32 logits, hidden and embedded [B, L, D]."""
        return self.judged(self.embedded(batch, train), batch, train)

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}."""
        rows, length = shapes["tokens"]
        width = self.size.width
        return super().flops(shapes) + float(rows * 2 * length * width * (width + 1))


class Body(_Alone):
    """The discriminator without its head, to be fine-tuned; attributes as `Discriminator`."""

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs hidden and embedded [B, L, D]."""
        embedded_BLD, hidden_BLD = self.hidden(self.embedded(batch, train), batch, train)
        return {"hidden": hidden_BLD, "embedded": embedded_BLD}


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Body`: [CLS] through a dense layer and GELU."""

    activation = staticmethod(bert.gelu_erf)
    kernel_init = staticmethod(bert.init)


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1

    drops_first = False


class Tagger(heads.TokenClassifier):
    """Tags of all tokens, on a `Body`."""

    kernel_init = staticmethod(bert.init)


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""

    kernel_init = staticmethod(bert.init)


class Parser(parser.Parser):
    """Arcs between words, on a `Body`."""
