"""GPT-1 (Radford et al. 2018, "Improving language understanding by generative pre-training").

Post-norm decoder with biases everywhere, tanh GELU, learned positions, no norm on the embeddings
and none at the end, the embedding table as readout.

Dropout of the embeddings acts on the tables, as in the published code: an element of a row is
dropped wherever its token stands, and in the readout too. transformers drops the sums instead,
which is the same in evaluation.

Parity: transformers' OpenAIGPTLMHeadModel (convert/gpt1.py, tests/parity/make_gpt.py).
Shapes: `B` batch, `L` length, `D` width, `H` heads, `K` head dim, `F` mlp, `V` vocabulary (padded).
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
from flaxlm.nn.embed import Embed, Table, look_up, padded
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.stack import stack


@dataclass(frozen=True)
class Size:
    """The numbers of a GPT.

    Attributes:
      depth: layers.
      width: D.
      mlp: F, inner width of the feed-forward layers.
      heads: H.
      head_dim: K; H * K need not be D.
      vocab: ids; the table is padded to a multiple of 128 rows.
      positions: rows of the table of positions: the longest row of tokens.
      dropout: rate everywhere: embeddings, attention weights, results of the sublayers.
      eps: of the norms.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    head_dim: int = 64
    vocab: int = 40478
    positions: int = 512
    dropout: float = 0.1
    eps: float = 1e-5

    def __post_init__(self):
        for name in ("depth", "width", "mlp", "heads", "head_dim", "vocab", "positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.size.dropout={self.dropout}: a rate is in [0, 1)")


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 256, 4, head_dim=16, vocab=512, positions=128, dropout=0.0),
    "base": Size(12, 768, 3072, 12),
}

# Of the released model, without the special symbols of fine-tuning; the readout is the table.
PARAMETERS: dict[str, int] = {"base": 116_534_784}


def _block(size: Size) -> Block:
    dropout = partial(Dropout, size.dropout)
    shared = dict(kernel_init=normal(0.02), bias_init=zeros, out_dropout=dropout)
    attention = partial(
        Attention, size.heads, size.head_dim, scale=size.head_dim**-0.5, dropout=dropout, **shared
    )
    mlp = partial(MLP, size.mlp, partial(jax.nn.gelu, approximate=True), **shared)
    return Block(attention, mlp, partial(LayerNorm, size.eps), post_norm, name="layers")


class Model(nn.Module):
    """Reads tokens, segments and positions; a position sees those before it of its segment.

    Attributes:
      size: the numbers.
      compute: how to compute.
    """

    prompt = "A"  # what it reads before it goes on, as a `convert.tokenizer.Template` says it

    size: Size
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout of the hidden states over size.vocab entries.
          hidden: [B, L, D], the last layer's.
        """
        size, dtype = self.size, self.compute.type
        drop = partial(Dropout(size.dropout, name="dropout"), train=train)
        embed = Embed(size.vocab, size.width, normal(0.02), dtype, name="embed")
        places = Table(
            size.positions, size.width, normal(0.02), dtype, "positions", name="positions"
        )
        tokens_VD, places_ND = drop(embed.table_VD), drop(places.table_ND)
        x_BLD = look_up(tokens_VD.astype(dtype), batch["tokens"], "vocab")
        x_BLD += look_up(places_ND.astype(dtype), batch["positions"], "positions")
        hidden_BLD = stack(
            _block(size),
            x_BLD,
            masks.own_past(batch),
            depth=size.depth,
            compute=self.compute,
            train=train,
        )
        readout = Readout(hidden_BLD, tokens_VD, vocab=size.vocab, transposed=True)
        return {"logits": readout, "hidden": hidden_BLD}

    @property
    def longest(self) -> int:
        """The longest row of tokens."""
        return self.size.positions

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times."""
        return flops(self.size, shapes)


class Classifier(heads.LastClassifier):
    """Classes of a row, on a `Model`: the extract token at its end through one layer. The published
    one has a bias, transformers' has none, and neither has this.
    """


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1


def flops(size: Size, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Forward FLOPs of a GPT. Attention counts all pairs of positions, masked ones included: that
    is what is computed.
    """
    rows, length = shapes["tokens"]
    inner = size.heads * size.head_dim
    layer = 2 * length * size.width * (4 * inner + 2 * size.mlp) + 4 * length**2 * inner
    return float(rows * (size.depth * layer + 2 * length * size.width * padded(size.vocab)))
