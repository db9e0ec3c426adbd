"""XLNet (Yang et al. 2019, "XLNet: generalized autoregressive pretraining for language
understanding", arXiv:1906.08237).

Post-norm layers without biases in the attention, tanh GELU, Transformer-XL's relative positions
with vectors u and v of every layer's own, and a term in the scores for "of the same text of the
pair or not". A readout tied to the embedding table, with a bias.

  Model           what one fine-tunes and loads: one stream that sees its whole segment.
  TwoStreamModel  the pretraining model. A content stream, as above but seeing what the
                  permutation lets it see; and a query stream at the positions to predict, which
                  starts from one learned vector and may not see its own token. Both use the same
                  weights; keys and values are the content stream's.

Their parameters are the same tree, so weights go from one to the other as they are.

  Body            the first of them without its head: what is fine-tuned, under `Classifier`,
                  `Chooser`, `Tagger` or `SpanReader`.

With `size.memory`, attention also sees the inputs that each layer had in the segments before
(feature and output "memory"); the step carries them. Such a memory is all visible and counts as
type 0, and rows must go on where they ended: `Data.packing` "continue". The published pretraining
also reads half of its rows backwards, memory included (`bi_data`); corpora here are not read
backwards, and without memory that changes nothing but the side of the special tokens.

Parity: transformers' XLNetLMHeadModel with ff_activation="gelu_new" (convert/xlnet.py,
tests/parity/make_xlnet.py). Initial values as the published code, normal 0.02. Dropout of the
position encodings is drawn once for all rows, as in Transformer-XL; the published code draws per
row, which makes it project them per row.
Shapes: `B` batch, `L` length, `P` slots, `Q` queries (L or P), `M` memory, `S` keys (M + L),
`N` distances, `D` width, `H` heads, `K` head dim, `F` mlp, `V` vocabulary (padded), `T` 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import glorot_uniform, normal, zeros

from flaxlm.batch import Batch
from flaxlm.errors import ConfigError
from flaxlm.losses import Readout
from flaxlm.models.bert import gelu_tanh
from flaxlm.named import param
from flaxlm.nn import heads, masks, relative
from flaxlm.nn.block import post_norm
from flaxlm.nn.compute import Compute
from flaxlm.nn.dropout import Dropout
from flaxlm.nn.embed import Embed, Table, padded
from flaxlm.nn.kernels import attend, scores, weights
from flaxlm.nn.linear import Linear
from flaxlm.nn.mlp import MLP
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.stack import stack
from flaxlm.sharding import constrain

init = normal(0.02)


@dataclass(frozen=True)
class Size:
    """The numbers of an XLNet.

    Attributes:
      depth: layers.
      width: D, even.
      mlp: F, inner width of the feed-forward layers.
      heads: H.
      head_dim: K.
      vocab: ids; the table is padded to a multiple of 128 rows.
      memory: M, positions of earlier segments that attention sees; 0: none, and no such feature.
      reuse: positions of a row that go into the memory, from its first on: as many as the objective
        moves a row on; 0: all. Plays no part without memory.
      dropout: rate everywhere.
      eps: of the norms.
    """

    depth: int
    width: int
    mlp: int
    heads: int
    head_dim: int = 64
    vocab: int = 32000
    memory: int = 0
    reuse: int = 0
    dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self):
        for name in ("depth", "width", "mlp", "heads", "head_dim", "vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 1")
        for name in ("memory", "reuse"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.size.{name}={getattr(self, name)}: must be at least 0")
        if self.width % 2:
            raise ConfigError(
                f"model.size.width={self.width}: must be even, half of the position encoding are "
                "sines and half cosines"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.size.dropout={self.dropout}: a rate is in [0, 1)")

    @property
    def inner(self) -> int:
        """H * K."""
        return self.heads * self.head_dim


SIZES: dict[str, Size] = {
    "tiny": Size(2, 64, 128, 4, head_dim=16, vocab=512, dropout=0.0),
    "base": Size(12, 768, 3072, 12),
    "large": Size(24, 1024, 4096, 16),
}

# With the readout's bias, one number per id; without it 116,718,336 and 360,268,800.
PARAMETERS: dict[str, int] = {"base": 116_750_336, "large": 360_300_800}


class View(struct.PyTreeNode):
    """What the queries of one stream see.

    Attributes:
      mask: [B, 1, Q, S] bool, which keys.
      other: [B, 1, Q, S] bool, the key is of another type than the query.
      places: [B, Q] positions of the queries; None: all, in order.
    """

    mask: jax.Array
    other: jax.Array
    places: jax.Array | None = None


class SharedAttention(nn.Module):
    """Attention of one or two streams to the content stream and the memory before it.

    Parameters: query, key, value [D, H*K] and out [H*K, D] (each a Linear without bias), relative
    (nn.relative.RelativeScores), type_bias [H, K] and types [2, H*K].
    """

    size: Size

    @nn.compact
    def __call__(
        self,
        streams: tuple[jax.Array, ...],
        memory_BMD: jax.Array | None,
        encoding_ND: jax.Array,
        views: tuple[View, ...],
        *,
        train: bool,
    ) -> tuple[jax.Array, ...]:
        """[B, Q, D] of each stream; the first of them is the content stream."""
        size = self.size
        source_BSD = streams[0]
        if memory_BMD is not None:
            source_BSD = jnp.concatenate([memory_BMD.astype(source_BSD.dtype), source_BSD], axis=1)

        def into_heads(name):
            return Linear(size.inner, init, None, ("embed", "heads"), kept="qkv", name=name)

        def heads_of(project, x, length):
            y = project(x).reshape(*x.shape[:2], size.heads, size.head_dim)
            return constrain(y, "batch", length, "heads", "head_dim")

        def parameter(name, *shape, axes):
            value = self.param(name, param(init, *axes), shape, jnp.float32)
            return value.astype(source_BSD.dtype)

        query, out = into_heads("query"), Linear(
            streams[0].shape[-1], init, None, ("heads", "embed"), name="out"
        )  # fmt: skip
        k_BSHK = heads_of(into_heads("key"), source_BSD, "keys")
        v_BSHK = heads_of(into_heads("value"), source_BSD, "keys")
        distance = relative.RelativeScores(size.heads, size.head_dim, init, name="relative")
        shape = (size.heads, size.head_dim)
        bias_HK = parameter("type_bias", *shape, axes=("heads", "head_dim"))
        types_THK = parameter("types", 2, size.inner, axes=("types", "heads")).reshape(2, *shape)
        dropout = Dropout(size.dropout, name="dropout")
        scale = size.head_dim**-0.5

        def attended(x_BQD, view: View):
            length = "length" if view.places is None else "slots"
            q_BQHK = heads_of(query, x_BQD, length)
            typed_BHQT = jnp.einsum(
                "BQHK,THK->BHQT",
                q_BQHK + bias_HK[None, None],
                types_THK,
                preferred_element_type=jnp.float32,
            )
            added_BHQS = distance(q_BQHK, k_BSHK, encoding_ND, view.places) + jnp.where(
                view.other, typed_BHQT[..., 1:], typed_BHQT[..., :1]
            )
            q_BQHK, added_BHQS = q_BQHK * scale, added_BHQS * scale
            if view.places is None and self.is_mutable_collection("layers"):  # see step.Applied
                found = scores(q_BQHK, k_BSHK, added_BHQS)
                self.sow("layers", "scores", found, reduce_fn=lambda old, new: new)
            mask = masks.Mask(extra=view.mask)
            if view.places is None and self.is_mutable_collection("attention"):  # see flaxlm.look
                found = weights(q_BQHK, k_BSHK, mask, added_BHQS)
                self.sow("attention", "weights", found, reduce_fn=lambda old, new: new)
            x_BQHK = attend(
                q_BQHK, k_BSHK, v_BSHK, mask, added_BHQS,
                dropout.acting(train), layer="/".join(self.path),
            )  # fmt: skip
            return out(x_BQHK.reshape(*x_BQD.shape[:2], size.inner))

        return tuple(map(attended, streams, views))


class Layer(nn.Module):
    """One layer. Parameters: attention, attention_norm, mlp, mlp_norm."""

    size: Size
    activation: Callable

    @nn.compact
    def __call__(self, streams, memory_BMD, encoding_ND, views, *, train):
        """(streams after the layer, the layer's next memory [B, M, D] or None)."""
        size = self.size
        remembered = None
        if memory_BMD is not None:
            kept = streams[0][:, : size.reuse or None].astype(memory_BMD.dtype)
            remembered = jnp.concatenate([memory_BMD, kept], axis=1)[:, -size.memory :]
        attention, norm = SharedAttention(size, name="attention"), partial(LayerNorm, size.eps)
        drop = partial(Dropout(size.dropout, name="dropout"), train=train)
        attended = attention(streams, memory_BMD, encoding_ND, views, train=train)
        attention_norm, mlp_norm = norm(name="attention_norm"), norm(name="mlp_norm")
        mlp = MLP(
            size.mlp,
            self.activation,
            kernel_init=init,
            bias_init=zeros,
            dropout=partial(Dropout, size.dropout),
            out_dropout=partial(Dropout, size.dropout),
            name="mlp",
        )

        def after(x_BQD, y_BQD, view):
            x_BQD = post_norm(x_BQD, lambda _: drop(y_BQD), attention_norm)
            x_BQD = post_norm(x_BQD, partial(mlp, train=train), mlp_norm)
            length = "length" if view.places is None else "slots"
            return constrain(x_BQD, "batch", length, "width")

        streams = tuple(map(after, streams, attended, views))
        if self.is_mutable_collection("layers"):  # someone asked for them: see step.Applied
            self.sow("layers", "hidden", streams[0], reduce_fn=lambda old, new: new)
        return streams, remembered


class Model(nn.Module):
    """Reads tokens, segments and types, and memory if there is one; sees all of its segment.

    Attributes:
      size: the numbers.
      compute: how to compute.
      activation: of the feed-forward layers; `bert.gelu_tanh` as published.
    """

    size: Size
    compute: Compute = Compute()
    activation: Callable = gelu_tanh

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict:
        """Outputs by name.

        Returns:
          logits: Readout over size.vocab entries: [B, L, D] of all positions; of `TwoStreamModel`
            [B, P, D], of the slots already.
          hidden: [B, L, D], the content stream's last hidden states.
          memory: [B, depth, M, D] fp32, to be read with the next segment; only with size.memory.
        """
        size, length = self.size, batch["tokens"].shape[1]
        embed = Embed(size.vocab, size.width, init, self.compute.type, name="embed")
        query = Table(1, size.width, glorot_uniform(), self.compute.type, "types", name="query")
        drop = partial(Dropout(size.dropout, name="dropout"), train=train)

        content_BLD, query_1D = embed(batch["tokens"]), query.table_ND.astype(self.compute.type)
        streams, views = self.streams(batch, content_BLD, query_1D)
        encoding_ND = relative.encoding(length, size.memory + length, size.width)
        memory = None
        if size.memory:
            memory = jnp.swapaxes(batch["memory"], 0, 1)
        streams, memory = stack(
            Layer(size, self.activation, name="layers"),
            tuple(map(drop, streams)),
            drop(encoding_ND.astype(self.compute.type)),
            views,
            each=(memory,),
            depth=size.depth,
            compute=self.compute,
            train=train,
            collect=True,
        )
        streams = tuple(map(drop, streams))
        length = "length" if views[-1].places is None else "slots"
        outputs = {
            **self.predictions(streams[-1], embed.table_VD, length),
            "hidden": streams[0],
        }
        if size.memory:
            memory = jnp.swapaxes(memory, 0, 1)
            memory = constrain(memory, "batch", "layers", "memory", "width")
            outputs["memory"] = jax.lax.stop_gradient(memory)
        return outputs

    def predictions(self, x_BQD: jax.Array, table_VD: jax.Array, length: str) -> dict:
        """Outputs of the head; parameter bias. `length` is the dim name of Q."""
        vocab = self.size.vocab
        bias_V = self.param("bias", param(zeros, "vocab"), (padded(vocab),), jnp.float32)
        readout = Readout(
            x_BQD, table_VD, bias=bias_V, vocab=vocab, transposed=True, length=length
        )  # fmt: skip
        return {"logits": readout}

    def streams(self, batch: Batch, content_BLD: jax.Array, query_1D: jax.Array):
        """(streams, views): what goes through the layers, and what each of them sees."""
        mask = masks.equal(batch["segments"], batch["segments"])
        return (content_BLD,), (self.view(batch, mask),)

    def view(self, batch: Batch, mask: jax.Array, places: jax.Array | None = None) -> View:
        """The view of queries at `places` that see `mask` [B, 1, Q, L] and all of the memory."""
        before = ((0, 0), (0, 0), (0, 0), (self.size.memory, 0))
        keys_BS = jnp.pad(batch["types"], (before[0], before[3]))
        queries_BQ = batch["types"]
        if places is not None:
            queries_BQ = jnp.take_along_axis(queries_BQ, places, axis=1, mode="clip")
        other = ~masks.equal(queries_BQ, keys_BS)
        return View(jnp.pad(mask, before, constant_values=True), other, places)

    def carried(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict:
        """What one step makes for the next: the memory, if there is one."""
        size = self.size
        if not size.memory:
            return {}
        shape = (shapes["tokens"].shape[0], size.depth, size.memory, size.width)
        return {"memory": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs of the matrix products of one batch {feature: shape}; training: 3 times."""
        return self._flops(*shapes["tokens"], slots=0, read=shapes["tokens"][1])

    def _flops(self, rows: int, length: int, *, slots: int, read: int) -> float:
        size = self.size
        queries, keys, distances = length + slots, size.memory + length, size.memory + 2 * length
        projections = 4 * (queries + keys) * size.width * size.inner
        pairs = (4 * queries * keys + 2 * queries * distances) * size.inner
        layer = projections + pairs + 4 * queries * size.width * size.mlp
        positions = size.depth * 2 * distances * size.width * size.inner  # once for all rows
        readout = 2 * read * size.width * padded(size.vocab)
        return float(rows * (size.depth * layer + readout) + positions)


class TwoStreamModel(Model):
    """The pretraining model: reads tokens, types, order, reach and slots, and memory if there is
    one. Outputs as `Model`, the logits those of the slots.
    """

    def streams(self, batch, content_BLD, query_1D):
        places, order, reach = batch["slots"], batch["order"], batch["reach"]
        # What a position may see, without itself: slots predict from it.
        at_places = jnp.take_along_axis(reach, places, axis=1, mode="clip")
        seen, seen_at_places = masks.below(order, reach), masks.below(order, at_places)
        itself = jnp.eye(order.shape[1], dtype=bool)[None, None]
        shape = (*places.shape, content_BLD.shape[-1])
        query_BPD = constrain(jnp.broadcast_to(query_1D[None], shape), "batch", "slots", "width")
        views = self.view(batch, seen | itself), self.view(batch, seen_at_places, places)
        return (content_BLD, query_BPD), views

    def flops(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Forward FLOPs, as `Model.flops`."""
        slots = shapes["slots"][1]
        return self._flops(*shapes["tokens"], slots=slots, read=slots)


class Body(Model):
    """XLNet without its head: output hidden, and memory if there is one."""

    def predictions(self, x_BQD, table_VD, length):
        return {}

    def flops(self, shapes):
        return self._flops(*shapes["tokens"], slots=0, read=0)


class Classifier(heads.DenseClassifier):
    """Classes of a row, on a `Body`: the last token, [CLS], through a dense layer and tanh."""

    activation = staticmethod(jnp.tanh)
    last = True
    drops_first = False
    kernel_init = staticmethod(init)


class Chooser(Classifier):
    """One number for each ending of a multiple choice."""

    classes: int = 1


class Tagger(heads.TokenClassifier):
    """Tags of all tokens, on a `Body`; nothing is dropped out."""

    dropout: float = 0.0

    kernel_init = staticmethod(init)


class SpanReader(heads.SpanReader):
    """Beginnings and ends of answers, on a `Body`."""

    kernel_init = staticmethod(init)
