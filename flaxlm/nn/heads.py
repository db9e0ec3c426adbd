"""Heads for tasks: what a family puts on its encoder to be fine-tuned.

A model for a task is an encoder, a field of it, and a head: parameters "encoder" and "head", so
that a warm start says where the pretrained part goes. What differs between families are values
that their files give: which vector stands for a row, whether a dense layer comes before the last
one and with which activation, where it drops out. Shapes: `B` batch, `L` length, `D` width,
`C` classes.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from flaxlm.errors import ConfigError
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import Linear
from flaxlm.sharding import constrain


class Tuned(nn.Module):
    """Base of the models for tasks.

    Attributes:
      encoder: a model of the family with the output "hidden" [B, L, D], and "pooled" [B, D] where
        the head reads that.
      classes: outputs of the head, C.
      dropout: rate in the head.
    """

    encoder: nn.Module
    classes: int
    dropout: float = 0.1

    kernel_init = staticmethod(normal(0.02))
    biased = True  # whether the last layer has a bias

    @property
    def size(self):
        """Of the encoder."""
        return self.encoder.size

    @property
    def compute(self) -> Compute:
        """Of the encoder."""
        return self.encoder.compute

    @property
    def longest(self) -> int | None:
        """Of the encoder."""
        return getattr(self.encoder, "longest", None)

    def clone(self, *, parent=None, **changes) -> nn.Module:
        """As of any module; `compute` is the encoder's."""
        if "compute" in changes:
            compute = changes.pop("compute")
            changes["encoder"] = self.encoder.clone(compute=compute, parent=None)
        return super().clone(parent=parent, **changes)

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the encoder; those of a head are few."""
        return self.encoder.flops(shapes)

    def _out(self) -> Linear:
        if self.classes < 1:
            raise ConfigError(f"model.classes={self.classes}: at least 1")
        bias_init = zeros if self.biased else None
        axes = ("embed", "types")
        return Linear(self.classes, self.kernel_init, bias_init, axes, name="head")

    def _read(self, found: Mapping[str, jax.Array], name: str) -> jax.Array:
        if name not in found:
            kind = type(self.encoder)
            raise ConfigError(
                f"{type(self).__name__} reads {name!r} of its encoder; "
                f"{kind.__module__}.{kind.__name__} has {', '.join(sorted(found))}"
            )
        return found[name]


class PooledClassifier(Tuned):
    """Classes of a row from what the encoder has pooled: dropout, one linear layer.

    Output class_logits [B, C] fp32.
    """

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        x_BD = self._read(self.encoder(batch, train=train), "pooled")
        x_BD = Dropout(self.dropout, name="drop")(x_BD, train=train)
        return {"class_logits": self._out()(x_BD).astype(jnp.float32)}


class DenseClassifier(Tuned):
    """Classes of a row from the hidden state of one position: dense layer "dense" [D, D],
    activation, dropout, one linear layer.

    Output class_logits [B, C] fp32.

    Class attributes, for families to set:
      activation: elementwise function.
      last: whether the row is read at its last token, not at its first.
      drops_first: whether the hidden state is dropped out before the dense layer, too.
    """

    activation = staticmethod(jnp.tanh)
    last = False
    drops_first = True

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        hidden_BLD = self._read(self.encoder(batch, train=train), "hidden")
        x_BD = last_token(hidden_BLD, batch) if self.last else hidden_BLD[:, 0]
        # Laid out before and after: else the gradient of the kernel's split dim reaches the stack.
        x_BD = constrain(x_BD, "batch", "width")
        if self.drops_first:
            x_BD = Dropout(self.dropout, name="drop_first")(x_BD, train=train)
        x_BD = Linear(x_BD.shape[-1], self.kernel_init, name="dense")(x_BD)
        x_BD = self.activation(constrain(x_BD, "batch", "width"))
        x_BD = Dropout(self.dropout, name="drop")(x_BD, train=train)
        return {"class_logits": self._out()(x_BD).astype(jnp.float32)}


class LastClassifier(Tuned):
    """Classes of a row from the hidden state of its last token, where a causal model has read all
    of it: dropout, one linear layer without a bias.

    Outputs: class_logits [B, C] fp32, and the encoder's logits, for a loss on its text.
    """

    biased = False

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        found = self.encoder(batch, train=train)
        # Laid out before: else the gradient of the kernel's split dim reaches the stack.
        x_BD = constrain(last_token(self._read(found, "hidden"), batch), "batch", "width")
        x_BD = Dropout(self.dropout, name="drop")(x_BD, train=train)
        logits_BC = self._out()(x_BD).astype(jnp.float32)
        return {"class_logits": logits_BC, "logits": self._read(found, "logits")}


def last_token(x_BLD: jax.Array, batch) -> jax.Array:
    """[B, D] of the last token of each row that is not padding."""
    place_B = jnp.maximum((batch["segments"] > 0).sum(1) - 1, 0)
    return jnp.take_along_axis(x_BLD, place_B[:, None, None], axis=1)[:, 0]


class TokenClassifier(Tuned):
    """Tags of all tokens: dropout, one linear layer. Output tag_logits [B, L, C] fp32."""

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        x_BLD = self._read(self.encoder(batch, train=train), "hidden")
        x_BLD = Dropout(self.dropout, name="drop")(x_BLD, train=train)
        return {"tag_logits": self._out()(x_BLD).astype(jnp.float32)}


class SpanReader(Tuned):
    """Beginnings and ends of answers: one linear layer. Output span_logits [B, L, 2] fp32."""

    classes: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        x_BLD = self._read(self.encoder(batch, train=train), "hidden")
        x_BLD = Dropout(self.dropout, name="drop")(x_BLD, train=train)
        return {"span_logits": self._out()(x_BLD).astype(jnp.float32)}
