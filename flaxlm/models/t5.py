"""T5 (Raffel et al. 2020, "Exploring the limits of transfer learning ...", arXiv:1910.10683).

Pre-norm encoder-decoder without biases: RMS norms, attention without scaling (folded into the query
initializer), one table of relative position biases per stack, one embedding table for both stacks.

  Model                v1.1 (also LM-adapted T5, T0, FLAN-T5): feed-forward gated by a tanh GELU,
                       a readout of its own.
  ModelV10             v1.0, the paper: ReLU; the readout is the embedding table, its input scaled
                       by D^-0.5.
  LanguageModel        the paper's decoder-only stack (section 3.2.1), causal.
  PrefixLanguageModel  the same, seeing a prefix as a whole.

Parity: transformers' T5ForConditionalGeneration (convert/t5.py, tests/parity/make_t5.py). Initial
values as T5X.
Shapes: `B` batch, `L` length, `M` decoder length, `D` width, `H` heads, `K` head dim, `F` mlp,
`V` vocabulary (padded).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
from jax.nn.initializers import normal, variance_scaling

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.nn import heads, masks
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, pre_norm
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed, Head, padded
from flaxlm.nn.mlp import MLP, GatedMLP
from flaxlm.nn.norm import RMSNorm
from flaxlm.nn.positions import RelativeBias
from flaxlm.nn.stack import stack


@dataclass(frozen=True)
class Size:
    """The numbers of a T5.

    Attributes:
      depth: layers of the encoder, or of the only stack.
      width: D.
      mlp: F, inner width of the feed-forward layers.
      heads: H.
      head_dim: K; H * K need not be D.
      vocab: ids, special symbols and sentinels included; tables are padded to a multiple of 128
        rows.
      decoder_depth: layers of the decoder; 0 means as many as the encoder.
      buckets: of relative distances.
      max_distance: distances from here on share the last bucket.
      dropout: rate everywhere; the v1.1 models were pretrained with 0.
      eps: of the norms.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    head_dim: int = 64
    vocab: int = 32128
    decoder_depth: int = 0
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self):
        for name in ("depth", "width", "mlp", "heads", "head_dim", "vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        if self.decoder_depth < 0:
            raise ConfigError(f"model.size.decoder_depth={self.decoder_depth}: must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.size.dropout={self.dropout}: a rate is in [0, 1)")
        # Both halves of a side need a bucket, and the logarithm needs room.
        if self.buckets < 4 or self.max_distance <= self.buckets // 2:
            raise ConfigError(
                f"model.size.buckets={self.buckets}, max_distance={self.max_distance}: "
                "needs at least 4 buckets and a max_distance above half of them"
            )


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 128, 4, head_dim=16, vocab=512, dropout=0.0),
    "small": Size(6, 512, 2048, 8),
    "base": Size(12, 768, 3072, 12),
    "large": Size(24, 1024, 4096, 16),
    "3b": Size(24, 1024, 16384, 32, head_dim=128),
    "11b": Size(24, 1024, 65536, 128, head_dim=128),
    "v1_1_small": Size(8, 512, 1024, 6, dropout=0.0),
    "v1_1_base": Size(12, 768, 2048, 12, dropout=0.0),
    "v1_1_large": Size(24, 1024, 2816, 16, dropout=0.0),
    "v1_1_xl": Size(24, 2048, 5120, 32, dropout=0.0),
    "v1_1_xxl": Size(24, 4096, 10240, 64, dropout=0.0),
}

# Of the published checkpoints: v1.0 names with ModelV10, v1_1 names with Model.
PARAMETERS: dict[str, int] = {
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "3b": 2_851_598_336,
    "11b": 11_307_321_344,
    "v1_1_small": 76_961_152,
    "v1_1_base": 247_577_856,
    "v1_1_large": 783_150_080,
    "v1_1_xl": 2_849_757_184,
    "v1_1_xxl": 11_135_332_352,
}

_attention_init = variance_scaling(1.0, "fan_in", "normal")
_mlp_init = variance_scaling(1.0, "fan_in", "truncated_normal")

relu = partial(MLP, activation=jax.nn.relu, kernel_init=_mlp_init)
gated_gelu = partial(
    GatedMLP, activation=partial(jax.nn.gelu, approximate=True), kernel_init=_mlp_init
)


def _block(size: Size, mlp: Callable[..., nn.Module]) -> nn.Module:
    """One layer; dropout noise is shared along the length."""
    dropout = partial(Dropout, size.dropout, shared=(-2,))
    attention = partial(
        Attention,
        size.heads,
        size.head_dim,
        kernel_init=_attention_init,
        query_init=variance_scaling(1.0 / size.head_dim, "fan_in", "normal"),
        dropout=dropout,
        out_dropout=dropout,
    )
    mlp = partial(mlp, inner=size.mlp, dropout=dropout, out_dropout=dropout)
    return Block(attention, mlp, partial(RMSNorm, size.eps), pre_norm, name="layers")


class Tower(nn.Module):
    """Layers between embeddings and final norm, with the position bias they share.

    Attributes:
      depth: number of layers.
      two_sided: buckets of the position bias for keys after the query, see nn.positions.buckets.
    """

    size: Size
    compute: Compute
    mlp: Callable[..., nn.Module]
    depth: int
    two_sided: bool

    @nn.compact
    def __call__(self, x_BLD, mask, memory_BSD=None, memory_mask=None, *, train):
        size, length = self.size, x_BLD.shape[1]
        drop = partial(Dropout(size.dropout, shared=(-2,), name="dropout"), train=train)
        bias = RelativeBias(size.buckets, size.max_distance, self.two_sided, name="bias").bias(
            size.heads, length, mask.keys().shape[1], mask.first
        )
        x_BLD = stack(
            _block(size, self.mlp),
            drop(x_BLD),
            mask,
            bias,
            None,
            memory_BSD,
            memory_mask,
            depth=self.depth,
            compute=self.compute,
            train=train,
        )
        return drop(RMSNorm(size.eps, name="norm")(x_BLD))


class _Base(nn.Module):
    """What the models share: one embedding table; a choice of feed-forward layer and readout."""

    size: Size
    compute: Compute = Compute()

    mlp = staticmethod(gated_gelu)
    tied = False

    def setup(self):
        size = self.size
        self.embed = Embed(size.vocab, size.width, normal(1.0), self.compute.type)
        if not self.tied:
            self.head = Head(size.vocab, size.width, _mlp_init)
        self.make_towers(partial(Tower, size, self.compute, self.mlp))

    def readout(self, hidden: jax.Array) -> Readout:
        if self.tied:
            hidden, kernel = hidden * self.size.width**-0.5, self.embed.table_VD
        else:
            kernel = self.head.kernel_DV
        return Readout(hidden, kernel, vocab=self.size.vocab, transposed=self.tied)


class Model(_Base):
    """T5 v1.1: reads tokens, segments, decoder_tokens, decoder_segments.

    Attributes:
      size: the numbers.
      compute: how to compute.
    """

    def make_towers(self, tower):
        size = self.size
        self.encoder = tower(size.depth, two_sided=True)
        self.decoder = tower(size.decoder_depth or size.depth, two_sided=False)

    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout of the decoder [B, M, D] over size.vocab entries.
          hidden: [B, M, D], the decoder's last hidden states after the final norm.
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
        hidden_BMD = self.states(encoder_BLD, batch, train=train)
        return {"logits": self.readout(hidden_BMD), "hidden": hidden_BMD}

    def states(self, encoder_BLD: jax.Array, batch: Batch, *, train: bool) -> jax.Array:
        """[B, M, D] last hidden states of the decoder."""
        past = masks.own_past(batch, "decoder_")
        return self.decoder(
            self.embed(batch["decoder_tokens"]),
            past,
            encoder_BLD,
            masks.same_segment(past.query_segments, batch["segments"]),
            train=train,
        )

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times."""
        size = self.size
        rows, length = shapes["tokens"]
        decoder_length = shapes["decoder_tokens"][1]
        encoder = _layer_flops(size, self.mlp, length, length)
        decoder = _layer_flops(size, self.mlp, decoder_length, decoder_length)
        cross = _attention_flops(size, decoder_length, length)
        readout = 2 * decoder_length * size.width * padded(size.vocab)
        decoder_depth = size.decoder_depth or size.depth
        return float(rows * (size.depth * encoder + decoder_depth * (decoder + cross) + readout))


class ModelV10(Model):
    """T5 v1.0, as published with the paper."""

    mlp = staticmethod(relu)
    tied = True


class Body(Model):
    """T5 v1.1 without its readout, for a head. That of v1.0 is the embedding table."""

    def decode(self, encoder_BLD: jax.Array, batch: Batch, *, train: bool) -> dict:
        """The decoder's hidden states alone."""
        return {"hidden": self.states(encoder_BLD, batch, train=train)}


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Body` or a `ModelV10` whose decoder reads the row once more, shifted
    right: its state at the last token. The paper answers in text; this head is transformers'.
    """

    dropout: float = 0.0

    last = True


class LanguageModel(_Base):
    """The paper's decoder-only stack: reads tokens and segments, sees the past alone.

    The layers are those of v1.0. Outputs: logits and hidden, as `Model`.
    """

    mlp = staticmethod(relu)
    tied = True
    two_sided = False
    prompt = "pad A"  # what it reads before it goes on, as a `convert.tokenizer.Template` says it

    def make_towers(self, tower):
        self.decoder = tower(self.size.depth, two_sided=self.two_sided)

    def visible(self, batch: Batch) -> masks.Mask:
        return masks.own_past(batch)

    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Readout and hidden states [B, L, D], as `Model`."""
        hidden_BLD = self.decoder(self.embed(batch["tokens"]), self.visible(batch), train=train)
        return {"logits": self.readout(hidden_BLD), "hidden": hidden_BLD}

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs, as `Model.flops`."""
        size = self.size
        rows, length = shapes["tokens"]
        readout = 2 * length * size.width * padded(size.vocab)
        return float(rows * (size.depth * _layer_flops(size, self.mlp, length, length) + readout))


class PrefixLanguageModel(LanguageModel):
    """The paper's prefix LM: reads `prefix`; a query sees the keys of its segment marked 1.

    Keys may lie ahead here, so the position buckets are two-sided, as in mesh-tensorflow (T5X keeps
    one side).
    """

    two_sided = True
    prompt = "pad A eos"

    def visible(self, batch: Batch) -> masks.Mask:
        return masks.prefix(batch["prefix"], masks.own_past(batch))


def _attention_flops(size: Size, queries: int, keys: int) -> int:
    """Of one row: four projections, and two products over all pairs, masked ones included."""
    inner = size.heads * size.head_dim
    return 4 * (queries + keys) * size.width * inner + 4 * queries * keys * inner


def _layer_flops(size: Size, mlp: Callable, queries: int, keys: int) -> int:
    matrices = 3 if mlp is gated_gelu else 2
    return _attention_flops(size, queries, keys) + 2 * matrices * queries * size.width * size.mlp
