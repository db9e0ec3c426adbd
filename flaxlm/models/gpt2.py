"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners").

Pre-norm decoder with biases everywhere, tanh GELU, a final norm, learned positions, and the
embedding table as readout. What differs from GPT-1: the norms come before the sublayers, and the
projections into the residual stream start smaller by 1 / sqrt(residual layers).

Any `nn.positions.Position` can take the place of the learned table.

Parity: transformers' GPT2LMHeadModel (convert/gpt2.py, tests/parity/make_gpt.py). The paper's
parameter counts (117M, 345M, 762M, 1542M) are not those of the released files; PARAMETERS are.
Initial values: the released code's (positions 0.01), the scaling from section 2.3 of the paper.
Dropout: none is in the released code; the rate of 0.1 is that of transformers' configuration.
Shapes: `B` batch, `L` length, `D` width, `H` heads, `K` head dim, `F` mlp, `V` vocabulary (padded).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
from jax.nn.initializers import normal, zeros

from flaxlm.batch import Batch
from flaxlm.losses import Readout
from flaxlm.models import gpt1
from flaxlm.nn import heads, masks
from flaxlm.nn.attention import Attention
from flaxlm.nn.block import Block, pre_norm
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.positions import Learned, Position
from flaxlm.nn.stack import stack


@dataclass(frozen=True)
class Size(gpt1.Size):
    """The numbers of a GPT-2, those of a GPT-1 with other defaults."""

    vocab: int = 50257
    positions: int = 1024


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 128, 4, head_dim=16, vocab=512, positions=128, dropout=0.0),
    "small": Size(12, 768, 3072, 12),
    "medium": Size(24, 1024, 4096, 16),
    "large": Size(36, 1280, 5120, 20),
    "xl": Size(48, 1600, 6400, 25),
}

# Of the released checkpoints; the readout is the embedding table.
PARAMETERS: dict[str, int] = {
    "small": 124_439_808,
    "medium": 354_823_168,
    "large": 774_030_080,
    "xl": 1_557_611_200,
}


def make_block(size: Size, kind: type[Block] = Block) -> nn.Module:
    """One layer; `kind` for a layer that sees other keys."""
    dropout = partial(Dropout, size.dropout)
    shared = dict(
        kernel_init=normal(0.02),
        out_init=normal(0.02 / (2 * size.depth) ** 0.5),  # two residual layers each
        bias_init=zeros,
        out_dropout=dropout,
    )
    attention = partial(
        Attention, size.heads, size.head_dim, scale=size.head_dim**-0.5, dropout=dropout, **shared
    )
    mlp = partial(MLP, size.mlp, partial(jax.nn.gelu, approximate=True), **shared)
    return kind(attention, mlp, partial(LayerNorm, size.eps), pre_norm, name="layers")


class Model(nn.Module):
    """Reads tokens, segments and positions; a position sees those before it of its segment.

    Attributes:
      size: the numbers.
      compute: how to compute.
      positions: the position encoding; None: a learned table of size.positions rows, as published.
    """

    prompt = gpt1.Model.prompt

    size: Size
    compute: Compute = Compute()
    positions: Position | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout of the hidden states over size.vocab entries.
          hidden: [B, L, D] after the final norm.
        """
        size, length = self.size, batch["tokens"].shape[1]
        embed = Embed(size.vocab, size.width, normal(0.02), self.compute.type, name="embed")
        encoding = self.positions
        if encoding is None:
            encoding = Learned(size.positions, normal(0.01), name="positions")
        x_BLD = encoding.embed(embed(batch["tokens"]), batch["positions"])
        x_BLD = Dropout(size.dropout, name="dropout")(x_BLD, train=train)
        mask = masks.own_past(batch)
        x_BLD = self.layers(
            x_BLD,
            mask,
            encoding.bias(size.heads, length, mask.keys().shape[1], mask.first),
            encoding.rotation(batch["positions"], size.head_dim),
            train=train,
        )
        hidden_BLD = LayerNorm(size.eps, name="norm")(x_BLD)
        readout = Readout(hidden_BLD, embed.table_VD, vocab=size.vocab, transposed=True)
        return {"logits": readout, "hidden": hidden_BLD}

    def layers(self, x_BLD, mask, bias, rotation, *, train: bool) -> jax.Array:
        """[B, L, D], from and to: the stack. Arguments as `nn.block.Block`."""
        return stack(
            make_block(self.size),
            x_BLD,
            mask,
            bias,
            rotation,
            depth=self.size.depth,
            compute=self.compute,
            train=train,
        )

    @property
    def longest(self) -> int | None:
        """The longest row of tokens; None where no table bounds it."""
        table = Learned(self.size.positions) if self.positions is None else self.positions
        return table.rows - table.offset if isinstance(table, Learned) else None

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times."""
        return gpt1.flops(self.size, shapes)


class Classifier(heads.LastClassifier):
    """Classes of a row, on a `Model`; no paper has it, transformers does, without dropout."""

    dropout: float = 0.0


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1
