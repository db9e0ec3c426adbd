"""The head that finds dependency arcs, as in KLUE's published baseline (Park et al. 2021): an LSTM
reads the words in both directions, another one goes over them again from what the first has seen
(Ma et al. 2018, without the stack), and two biaffine scorers (Dozat and Manning 2017) say how well
each word hangs on each other one, and by which relation.

Words stand in slots; slot 0 is the root, which is read at [CLS]. Shapes: `B` batch, `L` length,
`D` width, `S` slots, `W` width of a word, `R` relations; of S S the first are words, the second
their heads.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, normal, variance_scaling, zeros

from flaxlm.errors import ConfigError
from flaxlm.named import param
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.heads import Tuned
from flaxlm.nn.linear import Linear
from flaxlm.nn.recurrent import LSTM

_uniform = variance_scaling(1 / 3, "fan_in", "uniform")  # of PyTorch's Linear: 1 / sqrt(fan in)


class Biaffine(nn.Module):
    """Scores of all pairs: x U y + x u + y v + b for each of several outputs O.

    Parameters: pairs [O, I, I], words [I, O], heads [I, O], bias [O].

    Attributes:
      outputs: O.
    """

    outputs: int

    @nn.compact
    def __call__(self, words_BSI: jax.Array, heads_BSI: jax.Array) -> jax.Array:
        """[B, S, S, O]."""

        def made(name, init, axes, shape):
            return self.param(name, param(init, *axes), shape, jnp.float32)

        width, count = words_BSI.shape[-1], self.outputs
        init = glorot_uniform(in_axis=1, out_axis=0)  # PyTorch's fans of three dims
        pairs_OIJ = made("pairs", init, ("types", "embed", "width"), (count, width, width))
        single = glorot_uniform(), ("embed", "types"), (width, count)
        words_IO, heads_IO = (made(name, *single) for name in ("words", "heads"))
        bias_O = made("bias", zeros, ("types",), (count,))
        turned_BSOJ = jnp.einsum("BSI,OIJ->BSOJ", words_BSI, pairs_OIJ)
        scores_BSSO = jnp.einsum("BSOJ,BTJ->BSTO", turned_BSOJ, heads_BSI)
        alone = (words_BSI @ words_IO)[:, :, None] + (heads_BSI @ heads_IO)[:, None]
        return scores_BSSO + alone + bias_O.reshape(1, 1, 1, count)


class Parser(Tuned):
    """Heads and relations of words: reads, beside what the encoder does, word_starts, word_ends and
    words, and with `tags` word_tags. All of it is in fp32.

    Outputs arc_logits [B, S, S], relation_logits [B, S, S, R], both fp32. What stands in row 0,
    where the root is the word, has no meaning.

    Attributes:
      classes: relations, R.
      dropout: rate of the recurrent layers' results, one draw for all words, and of the parts of
        speech, a word as a whole.
      tags: parts of speech; 0: they are not read.
      tag_width: of their table.
      hidden: width of a recurrent layer.
      arc_width, relation_width: of what the scorers read.
    """

    dropout: float = 0.33
    tags: int = 0
    tag_width: int = 256
    hidden: int = 768
    arc_width: int = 512
    relation_width: int = 256

    @property
    def tables(self) -> dict[str, int]:
        """{feature: rows of the table that it is looked up in}."""
        return {"word_tags": self.tags + 1} if self.tags else {}

    @nn.compact
    def __call__(self, batch, *, train: bool) -> dict:
        if self.classes < 1:
            raise ConfigError(f"model.classes={self.classes}: at least 1")
        hidden_BLD = self._read(self.encoder(batch, train=train), "hidden")
        x_BSW = self._words(hidden_BLD.astype(jnp.float32), batch, train)
        live_BS = jnp.greater(batch["words"], 0)
        along = Dropout(self.dropout, shared=(1,), name="drop")

        there_BSW, (_, cell) = LSTM(self.hidden, name="forward")(x_BSW, live_BS)
        turned = (jnp.flip(some, axis=1) for some in (x_BSW, live_BS))
        back_BSW, (_, back_cell) = LSTM(self.hidden, name="backward")(*turned)
        context_BSW = jnp.concatenate([there_BSW, jnp.flip(back_BSW, axis=1)], axis=2)
        context_BSW = along(context_BSW, train=train)

        cell = self._dense(self.hidden, "start", jnp.concatenate([cell, back_cell], axis=1))
        source_BSW = nn.elu(self._dense(self.hidden, "source", context_BSW))
        live_BS = live_BS.at[:, 0].set(False)  # the root hangs on nothing
        again_BSW, _ = LSTM(self.hidden, name="again")(source_BSW, live_BS, (jnp.tanh(cell), cell))
        again_BSW = along(again_BSW, train=train)

        def scores(name: str, width: int, outputs: int) -> jax.Array:
            words = nn.elu(self._dense(width, f"{name}_words", again_BSW))
            heads = nn.elu(self._dense(width, f"{name}_heads", context_BSW))
            return Biaffine(outputs, name=name)(words, heads)

        return {
            "arc_logits": scores("arcs", self.arc_width, 1)[..., 0],
            "relation_logits": scores("relations", self.relation_width, self.classes),
        }

    def _words(self, hidden_BLD: jax.Array, batch, train: bool) -> jax.Array:
        """[B, S, W]: the first and the last piece of each word, and its part of speech."""
        parts = [
            jnp.take_along_axis(hidden_BLD, batch[name][..., None], axis=1)
            for name in ("word_starts", "word_ends")
        ]
        if self.tags:
            shape = (self.tags + 1, self.tag_width)
            table = self.param("tags", param(normal(1.0), "types", "width"), shape, jnp.float32)
            tags = jnp.take(table, batch["word_tags"], axis=0, mode="clip")
            parts.append(Dropout(self.dropout, shared=(2,), name="drop_tags")(tags, train=train))
        return jnp.concatenate(parts, axis=2)

    def _dense(self, width: int, name: str, x: jax.Array) -> jax.Array:
        return Linear(width, _uniform, name=name)(x)

    def flops(self, shapes) -> float:
        """Forward FLOPs of the encoder and of the head, whose recurrent layers are not few."""
        rows, slots = shapes["words"]
        word = 2 * self.size.width + (self.tag_width if self.tags else 0)
        wide, arc, relation = self.hidden, self.arc_width, self.relation_width
        layers = 2 * 4 * wide * (word + wide) + 4 * wide * 2 * wide
        dense = 2 * wide * wide + 3 * wide * (arc + relation)
        pairs = arc * (arc + slots) + self.classes * relation * (relation + slots)
        return self.encoder.flops(shapes) + 2.0 * rows * slots * (layers + dense + pairs)
