"""BERT (Devlin et al. 2019, "BERT: Pre-training of deep bidirectional transformers for language
understanding", arXiv:1810.04805).

Post-norm encoder; word, position and type tables summed and normed; a head that predicts masked
tokens with the word table as its matrix, a pooler on the first token and a two-class head on it.

  Model                the published pretraining model, masked tokens and pairs.
  MaskedLanguageModel  the same without pooler and pair head.
  Encoder              the same without heads.
  Body                 the same without pooler.
  Classifier, Chooser  an Encoder with a head for rows; Tagger, SpanReader, Parser: a Body with one
                       for tokens and words.

Two choices are values. `activation`: `gelu_tanh` is the published code since February 2019 (the
whole-word-masking and the small checkpoints), `gelu_erf` its first release (base and large of 2018,
and what Hugging Face calls "gelu"). `positions`: None is the learned table; RoFormer (Su et al.
2021) is this model with `Rotary(interleaved=True)` there.

Its parts serve families that descend from it: `Embeddings`, `encode`, `MaskedHead`.

Parity: transformers' BertForPreTraining, BertForMaskedLM, RoFormerForMaskedLM (convert/bert.py,
tests/parity/make_bert.py) and its heads for tasks (convert/heads.py, tests/parity/make_heads.py).
Initial values as the published code: truncated normal, 0.02.
Shapes: `B` batch, `L` length, `D` width, `E` width of the embedding, `H` heads, `F` mlp,
`V` vocabulary (padded).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import truncated_normal, zeros

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.named import param
from flaxlm.nn import heads, masks, parser
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, post_norm
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed, Table, padded
from flaxlm.nn.linear import Linear
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.positions import Learned, Position
from flaxlm.nn.stack import stack
from flaxlm.sharding import constrain

init = truncated_normal(0.02)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation."""
    return jax.nn.gelu(x, approximate=True)


def gelu_erf(x: jax.Array) -> jax.Array:
    """GELU as it is defined."""
    return jax.nn.gelu(x, approximate=False)


@dataclass(frozen=True)
class Size:
    """The numbers of a BERT.

    Attributes:
      depth: layers.
      width: D.
      mlp: F, inner width of the feed-forward layers.
      heads: H; each has D / H channels.
      vocab: ids; the table is padded to a multiple of 128 rows.
      length: positions of the learned table.
      types: token types; 0: no such table.
      embed_width: E, with a projection to D after the embeddings; 0: E is D, no projection.
      dropout: rate of embeddings and of the results of attention and feed-forward layers.
      attention_dropout: rate of the attention weights.
      eps: of the norms.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    vocab: int = 30522
    length: int = 512
    types: int = 2
    embed_width: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self):
        for name in ("depth", "width", "mlp", "heads", "vocab", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        for name in ("types", "embed_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 0")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: a rate is in [0, 1)")
        if self.width % self.heads:
            raise ConfigError(
                f"model.size.heads={self.heads} does not divide model.size.width={self.width}: "
                "every head has width / heads channels"
            )

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def embedding(self) -> int:
        """E."""
        return self.embed_width or self.width


def _miniature(depth: int, width: int) -> Size:
    return Size(depth, width, 4 * width, width // 64)


SIZES: dict[str, Size] = {
    "tiny": Size(2, 48, 96, 4, vocab=500, length=64, dropout=0.0, attention_dropout=0.0),
    "base_uncased": Size(12, 768, 3072, 12),
    "base_cased": Size(12, 768, 3072, 12, vocab=28996),
    "large_uncased": Size(24, 1024, 4096, 16),
    "large_cased": Size(24, 1024, 4096, 16, vocab=28996),
    "miniature_tiny": _miniature(2, 128),
    "miniature_mini": _miniature(4, 256),
    "miniature_small": _miniature(4, 512),
    "miniature_medium": _miniature(8, 512),
}

# Encoder with pooler, without the heads, as published checkpoints are counted.
PARAMETERS: dict[str, int] = {
    "base_uncased": 109_482_240,
    "base_cased": 108_310_272,
    "large_uncased": 335_141_888,
    "large_cased": 333_579_264,
    "miniature_tiny": 4_385_920,
    "miniature_mini": 11_170_560,
    "miniature_small": 28_763_648,
    "miniature_medium": 41_373_184,
}


class Embeddings(nn.Module):
    """Word, type and position embeddings, summed, normed, dropped out: reads tokens, positions and,
    with `size.types`, types.

    Parameters: tokens/table, types/table, those of `positions`, norm.

    Attributes:
      size: vocab, embedding, types, dropout and eps are read.
      positions: an unbound position encoding; this module's own from now on.
      dtype: of the results.
      kernel_init: initializer of the tables.
    """

    size: Size
    positions: Position
    dtype: jnp.dtype
    kernel_init: Callable = init

    def setup(self):
        size, init = self.size, self.kernel_init
        self.tokens = Embed(size.vocab, size.embedding, init, self.dtype)
        if size.types:
            self.types = Table(size.types, size.embedding, init, self.dtype, "types")
        self.norm = LayerNorm(size.eps)
        self.dropout = Dropout(size.dropout)

    def __call__(self, batch: Batch, *, train: bool) -> jax.Array:
        """[B, L, E]."""
        x_BLE = self.tokens(batch["tokens"])
        if self.size.types:
            x_BLE = x_BLE + self.types(batch["types"])
        x_BLE = self.positions.embed(x_BLE, batch["positions"])
        return self.dropout(self.norm(x_BLE), train=train)

    @property
    def table_VE(self) -> jax.Array:
        """The word table, for a tied readout."""
        return self.tokens.table_VD

    def bias(self, heads: int, length: int) -> jax.Array | None:
        """What `positions` adds to the attention scores."""
        return self.positions.bias(heads, length, length)

    def rotation(self, positions_BL: jax.Array, head_dim: int) -> Callable | None:
        """How `positions` turns queries and keys."""
        return self.positions.rotation(positions_BL, head_dim)


def block(size: Size, activation: Callable, kernel_init: Callable = init) -> Block:
    """One layer, named "layers"."""
    dropout = partial(Dropout, size.dropout)
    attention = partial(
        Attention,
        size.heads,
        size.head_dim,
        kernel_init=kernel_init,
        bias_init=zeros,
        scale=size.head_dim**-0.5,
        dropout=partial(Dropout, size.attention_dropout),
        out_dropout=dropout,
    )
    mlp = partial(
        MLP, size.mlp, activation, kernel_init=kernel_init, bias_init=zeros, out_dropout=dropout
    )
    return Block(attention, mlp, partial(LayerNorm, size.eps), post_norm, name="layers")


def encode(
    size: Size,
    x_BLD: jax.Array,
    segments_BL: jax.Array,
    bias: jax.Array | None = None,
    rotation: Callable | None = None,
    *,
    activation: Callable,
    compute: Compute,
    train: bool,
    kernel_init: Callable = init,
    common: Sequence[str] = (),
) -> jax.Array:
    """[B, L, D] hidden states of the last layer: `size.depth` layers with parameters "layers" of
    the module whose compact method calls this.

    Args:
      bias, rotation: what positions add to the scores and how they turn queries and keys.
      common: parts whose parameters the layers have in common, see `nn.stack.stack`.
    """
    return stack(
        block(size, activation, kernel_init),
        x_BLD,
        masks.same_segment(segments_BL),
        bias,
        rotation,
        depth=size.depth,
        compute=compute,
        common=common,
        train=train,
    )


class MaskedHead(nn.Module):
    """Predicts tokens: dense [D, E], activation, norm, the word table, a bias per word.

    Parameters: dense, norm, bias.

    Attributes:
      vocab: entries of the readout.
      width: E.
      activation: elementwise function.
      eps: of the norm.
      kernel_init: initializer of the dense kernel.
    """

    vocab: int
    width: int
    activation: Callable
    eps: float
    kernel_init: Callable = init

    @nn.compact
    def __call__(self, hidden_BLD: jax.Array, table_VE: jax.Array) -> Readout:
        x_BLE = self.activation(Linear(self.width, self.kernel_init, name="dense")(hidden_BLD))
        x_BLE = LayerNorm(self.eps, name="norm")(x_BLE)
        bias_V = self.param("bias", param(zeros, "vocab"), (padded(self.vocab),), jnp.float32)
        return Readout(x_BLE, table_VE, bias=bias_V, vocab=self.vocab, transposed=True)


class MaskedLanguageModel(nn.Module):
    """BERT without pooler and pair head: reads tokens, segments, positions, types.

    Attributes:
      size: the numbers.
      compute: how to compute.
      activation: `gelu_tanh` or `gelu_erf`, of the feed-forward layers and the head.
      positions: how the order is known; None: a learned table of size.length rows.
    """

    size: Size
    compute: Compute = Compute()
    activation: Callable = gelu_tanh
    positions: Position | None = None

    kernel_init = staticmethod(init)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout [B, L, E] over size.vocab entries.
          hidden: [B, L, D], the last layer's.
          embedded: [B, L, D], the first layer's input.
        """
        size, init = self.size, self.kernel_init
        embed = Embeddings(size, self.encoding(), self.compute.type, init, name="embed")
        embedded_BLD = embed(batch, train=train)
        if size.embed_width:
            embedded_BLD = Linear(size.width, init, name="widen")(embedded_BLD)
        hidden_BLD = self.encode(
            embedded_BLD,
            batch["segments"],
            embed.bias(size.heads, batch["tokens"].shape[1]),
            embed.rotation(batch["positions"], size.head_dim),
            train=train,
        )
        outputs = {"hidden": hidden_BLD, "embedded": embedded_BLD}
        return outputs | self.predictions(hidden_BLD, embed.table_VE) | self.pooled(hidden_BLD)

    def predictions(self, hidden_BLD: jax.Array, table_VE: jax.Array) -> dict:
        """Outputs of every position."""
        size = self.size
        head = MaskedHead(
            size.vocab, size.embedding, self.activation, size.eps, self.kernel_init, name="head"
        )
        return {"logits": head(hidden_BLD, table_VE)}

    def encoding(self) -> Position:
        """The position encoding, unbound."""
        if self.positions is None:
            return Learned(self.size.length, kernel_init=self.kernel_init, parent=None)
        return self.positions.clone(parent=None, name=None)

    def encode(self, x_BLD, segments_BL, bias, rotation, *, train):
        """The layers; see `encode`."""
        return encode(
            self.size, x_BLD, segments_BL, bias, rotation,
            activation=self.activation, compute=self.compute, train=train,
            kernel_init=self.kernel_init,
        )  # fmt: skip

    def pooled(self, hidden_BLD: jax.Array) -> dict:
        """Outputs of the rows as wholes."""
        return {}

    @property
    def longest(self) -> int | None:
        """Positions that the table has; None: there is no table."""
        encoding = self.encoding()
        return encoding.rows - encoding.offset if isinstance(encoding, Learned) else None

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times.

        Logits are counted at the slots of the batch, or everywhere if it has none.
        """
        size, (rows, length) = self.size, shapes["tokens"]
        read_out = shapes["slots"][1] if "slots" in shapes else length
        widen = 2 * length * size.embed_width * size.width
        head = 2 * size.embedding * (length * size.width + read_out * padded(size.vocab))
        return float(rows * (size.depth * layer_flops(size, length) + widen + head))


class Model(MaskedLanguageModel):
    """BERT as published for pretraining: attributes and inputs as `MaskedLanguageModel`.

    Outputs: those, and pooled [B, D], pair_logits [B, 2] fp32.
    """

    def pooled(self, hidden_BLD):
        pooled_BD = _pool(self, hidden_BLD)
        pair = Linear(2, self.kernel_init, axes=("embed", "types"), name="pair")(pooled_BD)
        return {"pooled": pooled_BD, "pair_logits": pair.astype(jnp.float32)}


class Body(MaskedLanguageModel):
    """BERT without heads and pooler: outputs hidden, embedded."""

    def predictions(self, hidden_BLD, table_VE):
        return {}

    def flops(self, shapes):
        size, (rows, length) = self.size, shapes["tokens"]
        widen = 2 * length * size.embed_width * size.width
        return float(rows * (size.depth * layer_flops(size, length) + widen))


class Encoder(Body):
    """BERT without heads: outputs hidden, embedded, pooled."""

    def pooled(self, hidden_BLD):
        return {"pooled": _pool(self, hidden_BLD)}


class Classifier(heads.PooledClassifier):
    """Classes of a row, on an `Encoder`."""

    kernel_init = staticmethod(init)


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1


class Tagger(heads.TokenClassifier):
    """Tags of all tokens, on a `Body`."""

    kernel_init = staticmethod(init)


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""

    kernel_init = staticmethod(init)


class Parser(parser.Parser):
    """Arcs between words, on a `Body`."""


def _pool(model: MaskedLanguageModel, hidden_BLD: jax.Array) -> jax.Array:
    """[B, D] of the first position."""
    # Laid out before and after: else the gradient of the kernel's split dim reaches the stack.
    first_BD = constrain(hidden_BLD[:, 0], "batch", "width")
    pooled_BD = Linear(model.size.width, model.kernel_init, name="pooler")(first_BD)
    return jnp.tanh(constrain(pooled_BD, "batch", "width"))


def layer_flops(size: Size, length: int) -> int:
    """Forward FLOPs of one layer for one row: projections, both products over all pairs,
    feed-forward.
    """
    weights = 4 * size.width * size.width + 2 * size.width * size.mlp
    return 2 * length * weights + 4 * length * length * size.width
