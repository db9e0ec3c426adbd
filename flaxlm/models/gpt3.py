"""GPT-3 (Brown et al. 2020, "Language models are few-shot learners", arXiv:2005.14165).

GPT-2 whose layers alternate between dense attention and a local band, in the manner of the Sparse
Transformer (Child et al. 2019). The paper publishes neither the width of the band nor which kind
comes first; here the first layer is dense and a band holds 256 positions, the query's included, as
in GPT-Neo. On TPUs a kernel skips what lies outside of it; elsewhere it saves no work.

Sizes are those of table 2.1, whose products do not all hold. Read here: XL ("1_3b") has 16 heads of
128, not 24; 13B has the width 5120 = 40 x 128, not 5140.

Parity: transformers' GPT2LMHeadModel without bands (a band as wide as the row), and
GPTNeoForCausalLM with them (tests/parity/make_gpt.py); the weights were never released.
PARAMETERS: what a GPT-2 of these numbers has. No dropout is published: 0 here.
Shapes: `B` batch, `L` length, `D` width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxlm.errors import ConfigError
from flaxlm.models import gpt2
from flaxlm.nn import masks
from flaxlm.nn.block import Block
from flaxlm.nn.stack import stack


@dataclass(frozen=True)
class Size(gpt2.Size):
    """The numbers of a GPT-3: those of a GPT-2, and the band.

    Attributes:
      band: positions that a query sees in layers 1, 3, ..., itself included; a band of `positions`
        makes all layers dense.
    """

    positions: int = 2048
    dropout: float = 0.0
    band: int = 256

    def __post_init__(self):
        super().__post_init__()
        if self.band < 1:
            raise ConfigError(f"model.size.band={self.band}: a query sees at least itself: 1")


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 256, 4, head_dim=16, vocab=512, positions=128, band=8),
    "125m": Size(12, 768, 3072, 12),
    "350m": Size(24, 1024, 4096, 16),
    "760m": Size(24, 1536, 6144, 16, head_dim=96),
    "1_3b": Size(24, 2048, 8192, 16, head_dim=128),
    "2_7b": Size(32, 2560, 10240, 32, head_dim=80),
    "6_7b": Size(32, 4096, 16384, 32, head_dim=128),
    "13b": Size(40, 5120, 20480, 40, head_dim=128),
    "175b": Size(96, 12288, 49152, 96, head_dim=128),
}

PARAMETERS: dict[str, int] = {
    "125m": 125_226_240,
    "350m": 355_871_744,
    "760m": 760_300_032,
    "1_3b": 1_315_723_264,
    "2_7b": 2_651_553_280,
    "6_7b": 6_658_404_352,
    "13b": 12_853_386_240,
    "175b": 174_604_259_328,
}


class Layer(Block):
    """A `Block` for which the mask's band counts where `banded` is set."""

    def __call__(self, x_BLD, banded, mask, bias, rotation, *, train):
        """[B, L, D], from and to; `banded` is a boolean, the others as `Block`."""
        mask = mask.replace(banded=banded)
        return super().__call__(x_BLD, mask, bias, rotation, train=train)


class Model(gpt2.Model):
    """As `gpt2.Model`; every second layer sees a band."""

    def layers(self, x_BLD, mask, bias, rotation, *, train: bool) -> jax.Array:
        size = self.size
        return stack(
            gpt2.make_block(size, Layer),
            x_BLD,
            mask & masks.near(size.band),
            bias,
            rotation,
            each=(jnp.arange(size.depth) % 2 == 1,),
            depth=size.depth,
            compute=self.compute,
            train=train,
        )
