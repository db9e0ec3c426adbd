"""BART (Lewis et al. 2020, "BART: denoising sequence-to-sequence pre-training", arXiv:1910.13461).

The original transformer's encoder-decoder, post-norm with biases and no norm at the end, with erf
GELU, learned positions, a norm after the embeddings of both stacks, and one table that embeds both
sides and reads out. The position tables begin with two rows that nothing reads: their rows are
counted from the padding id, 1, as in fairseq.

fairseq counts the positions of tokens that are not padding, we and transformers those of all:
equal where padding is at the end.

Parity: transformers' BartForConditionalGeneration (convert/bart.py, tests/parity/make_bart.py).
Shapes: `B` batch, `L` length, `M` decoder length, `D` width, `H` heads, `F` mlp, `V` vocabulary
(padded).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
from jax.nn.initializers import normal, zeros

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.nn import heads, masks
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, post_norm
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed, padded
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.positions import Learned
from flaxlm.nn.stack import stack

OFFSET = 2  # row of position 0 in the tables


@dataclass(frozen=True)
class Size:
    """The numbers of a BART.

    Attributes:
      depth: layers of the encoder.
      width: D, a multiple of heads.
      mlp: F, inner width of the feed-forward layers.
      heads: H.
      vocab: ids, special symbols included; the table is padded to a multiple of 128 rows.
      decoder_depth: layers of the decoder; 0 means as many as the encoder.
      positions: longest row; the tables have `OFFSET` rows more.
      dropout: rate of embeddings and sublayers' results.
      attention_dropout: rate of attention weights.
      mlp_dropout: rate inside the feed-forward layers.
      eps: of the norms.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    vocab: int = 50265
    decoder_depth: int = 0
    positions: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self):
        for name in ("depth", "width", "mlp", "heads", "vocab", "positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.heads:
            raise ConfigError(
                f"model.size.width={self.width} cannot be split into {self.heads} heads; nearest "
                f"that can: {max(self.width // self.heads, 1) * self.heads}"
            )
        if self.decoder_depth < 0:
            raise ConfigError(f"model.size.decoder_depth={self.decoder_depth}: must be at least 0")
        for name in ("dropout", "attention_dropout", "mlp_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: a rate is in [0, 1)")


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 128, 4, vocab=512, positions=128, dropout=0.0, attention_dropout=0.0),
    "base": Size(6, 768, 3072, 12),
    "large": Size(12, 1024, 4096, 16),
}
SIZES["large_cnn"] = replace(SIZES["large"], vocab=50264)  # summarises news; without <mask>

# Of the published checkpoints; the readout is the embedding table.
PARAMETERS: dict[str, int] = {
    "base": 139_420_416,
    "large": 406_291_456,
    "large_cnn": 406_290_432,
}


def _block(size: Size) -> nn.Module:
    dropout = partial(Dropout, size.dropout)
    init = dict(kernel_init=normal(0.02), bias_init=zeros)
    attention = partial(
        Attention,
        size.heads,
        size.width // size.heads,
        **init,
        scale=(size.width // size.heads) ** -0.5,
        dropout=partial(Dropout, size.attention_dropout),
        out_dropout=dropout,
    )
    mlp = partial(
        MLP,
        size.mlp,
        partial(jax.nn.gelu, approximate=False),
        **init,
        dropout=partial(Dropout, size.mlp_dropout),
        out_dropout=dropout,
    )
    return Block(attention, mlp, partial(LayerNorm, size.eps), post_norm, name="layers")


class Tower(nn.Module):
    """Positions, the norm of the embeddings, and the layers.

    Attributes:
      depth: number of layers.
    """

    size: Size
    compute: Compute
    depth: int

    @nn.compact
    def __call__(self, x_BLD, mask, memory_BSD=None, memory_mask=None, *, train):
        size = self.size
        positions = Learned(size.positions + OFFSET, normal(0.02), OFFSET, name="positions")
        x_BLD = positions.embed(x_BLD, mask.places(x_BLD.shape[1])[None])
        x_BLD = LayerNorm(size.eps, name="embedding_norm")(x_BLD)
        x_BLD = Dropout(size.dropout, name="dropout")(x_BLD, train=train)
        return stack(
            _block(size),
            x_BLD,
            mask,
            None,
            None,
            memory_BSD,
            memory_mask,
            depth=self.depth,
            compute=self.compute,
            train=train,
        )


class Model(nn.Module):
    """Reads tokens, segments, decoder_tokens, decoder_segments.

    Attributes:
      size: the numbers.
      compute: how to compute.
    """

    size: Size
    compute: Compute = Compute()

    def setup(self):
        size = self.size
        self.embed = Embed(size.vocab, size.width, normal(0.02), self.compute.type)
        self.encoder = Tower(size, self.compute, size.depth)
        self.decoder = Tower(size, self.compute, size.decoder_depth or size.depth)

    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout of the decoder [B, M, D] over size.vocab entries.
          hidden: [B, M, D], the decoder's last hidden states.
          encoder: [B, L, D], the encoder's.
        """
        encoder_BLD = self.encode(batch, train=train)
        return self.decode(encoder_BLD, batch, train=train) | {"encoder": encoder_BLD}

    def encode(self, batch: Batch, *, train: bool) -> jax.Array:
        """[B, L, D] last hidden states of the encoder."""
        mask = masks.same_segment(batch["segments"])
        return self.encoder(self.embed(batch["tokens"]), mask, train=train)

    def decode(self, encoder_BLD: jax.Array, batch: Batch, *, train: bool) -> dict:
        """Logits and hidden states of the decoder, as `__call__`; does not read batch["tokens"]."""
        past = masks.own_past(batch, "decoder_")
        hidden_BMD = self.decoder(
            self.embed(batch["decoder_tokens"]),
            past,
            encoder_BLD,
            masks.same_segment(past.query_segments, batch["segments"]),
            train=train,
        )
        readout = Readout(hidden_BMD, self.embed.table_VD, vocab=self.size.vocab, transposed=True)
        return {"logits": readout, "hidden": hidden_BMD}

    @property
    def longest(self) -> int:
        """The longest row of tokens."""
        return self.size.positions

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times."""
        size = self.size
        rows, length = shapes["tokens"]
        decoder_length = shapes["decoder_tokens"][1]

        def attention(queries, keys):  # four projections, and two products over all pairs
            return 4 * (queries + keys) * size.width**2 + 4 * queries * keys * size.width

        def mlp(positions):
            return 4 * positions * size.width * size.mlp

        encoder = attention(length, length) + mlp(length)
        decoder = attention(decoder_length, decoder_length) + mlp(decoder_length)
        decoder += attention(decoder_length, length)
        readout = 2 * decoder_length * size.width * padded(size.vocab)
        layers = size.depth * encoder + (size.decoder_depth or size.depth) * decoder
        return float(rows * (layers + readout))


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Model` whose decoder reads the row once more, shifted right: its
    state at the last token (section 3.1).
    """

    dropout: float = 0.0

    last = True


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Model`, from the decoder's states (section 3.2)."""
