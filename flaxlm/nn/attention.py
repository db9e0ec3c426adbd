"""Attention with the projections around it; how it is computed is chosen in nn/kernels.py.

`B` batch, `Q` queries, `S` keys, `D` width, `H` heads, `K` head dim.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.kernels import attend, scores, weights
from flaxlm.nn.linear import project
from flaxlm.nn.masks import Mask
from flaxlm.nn.relative import Relative, RelativeScores
from flaxlm.sharding import attention_axes, constrain, platform


class Attention(nn.Module):
    """Multi-head attention: kernels query, key, value [D, H*K] and out [H*K, D], biases if wanted.

    Attributes:
      heads: H.
      head_dim: K; H * K need not be D.
      kernel_init: initializer of the kernels.
      query_init, out_init: of the query and out kernels; None: as `kernel_init`.
      bias_init: initializer of the biases query_bias, key_bias, ...; None: there are none.
      scale: of the queries, usually K^-0.5; 1.0 where the query initializer holds it (T5).
      dropout: makes the dropout of the attention weights [B, H, Q, S].
      out_dropout: makes the dropout of the result.
    """

    heads: int
    head_dim: int
    kernel_init: Callable
    query_init: Callable | None = None
    out_init: Callable | None = None
    bias_init: Callable | None = None
    scale: float = 1.0
    dropout: Callable[..., nn.Module] = partial(Dropout, 0.0)
    out_dropout: Callable[..., nn.Module] = partial(Dropout, 0.0)

    @nn.compact
    def __call__(
        self,
        x_BQD: jax.Array,
        memory_BSD: jax.Array,
        *,
        mask: Mask,
        bias: jax.Array | Relative | None = None,
        rotation: Callable[[jax.Array], jax.Array] | None = None,
        train: bool,
    ) -> jax.Array:
        """[B, Q, D]: `x` attends to `memory`, which is `x` in self-attention.

        Keys and values [B, H, S, K] come from earlier calls where the collection "past" has "keys"
        and "values": in self-attention those of the positions before `mask.first`, among which the
        call puts its own; in attention to a memory all, and the memory is not read. What a call
        computes it sows in the collection "present", if that is mutable. Heads come before
        positions there: a step then reads the keys of a head as they lie.

        Args:
          mask, bias: see `nn.kernels.attend`. A `Relative` bias is computed here from queries and
            keys, with parameters "relative" (nn.relative.RelativeScores).
          rotation: turns queries and keys [B, L, H, K] by their positions (nn.positions.Rotation).
        """
        # The reshape between heads and the width moves every element on a TPU, and not on a CPU,
        # whose products want two dims.
        heads_apart = platform() == "tpu"
        inner = self.heads * self.head_dim
        split = (self.heads, self.head_dim) if heads_apart else inner

        def heads_of(x, name, init):
            init = init or self.kernel_init
            y = project(self, name, x, split, ("embed", "heads"), init, self.bias_init, kept=None)
            y = y.reshape(*x.shape[:2], self.heads, self.head_dim)
            return constrain(y, "batch", "length", "heads", "head_dim")

        q_BQHK = heads_of(x_BQD, "query", self.query_init)
        past = self._past()
        if past is not None and memory_BSD is not x_BQD:
            assert rotation is None, "positions of a memory are its own"
            k_BSHK, v_BSHK = (x_BHSK.swapaxes(1, 2) for x_BHSK in past)
        else:
            k_BSHK = heads_of(memory_BSD, "key", None)
            v_BSHK = heads_of(memory_BSD, "value", None)
            if rotation is not None:
                q_BQHK, k_BSHK = rotation(q_BQHK), rotation(k_BSHK)
            if self.is_mutable_collection("present"):
                self.sow("present", "keys", k_BSHK.swapaxes(1, 2), reduce_fn=_last)
                self.sow("present", "values", v_BSHK.swapaxes(1, 2), reduce_fn=_last)
            if past is not None:
                k_BSHK, v_BSHK = (
                    jax.lax.dynamic_update_slice_in_dim(
                        before, own.swapaxes(1, 2), mask.first, axis=2
                    ).swapaxes(1, 2)
                    for before, own in zip(past, (k_BSHK, v_BSHK), strict=True)
                )
        # Kept as they are used, after bias and rotation: neither is computed again.
        q_BQHK, k_BSHK, v_BSHK = (checkpoint_name(x, "qkv") for x in (q_BQHK, k_BSHK, v_BSHK))
        length, heads = attention_axes(self.heads)
        if isinstance(bias, Relative):
            length, heads = "length", "heads"
            k_BSHK = constrain(k_BSHK, "batch", "keys", heads, "head_dim")
            relative = RelativeScores(self.heads, self.head_dim, self.kernel_init, name="relative")
            places = bias.places
            if places is not None:
                places = jnp.broadcast_to(places, (len(q_BQHK), places.shape[1]))
            bias = relative(q_BQHK, k_BSHK, bias.encoding, places) * self.scale
        if self.scale != 1.0:
            q_BQHK = q_BQHK * self.scale
        q_BQHK = constrain(q_BQHK, "batch", length, heads, "head_dim")
        k_BSHK = constrain(k_BSHK, "batch", "keys", heads, "head_dim")
        v_BSHK = constrain(v_BSHK, "batch", "keys", heads, "head_dim")
        if self.is_mutable_collection("layers"):  # someone asked for them: see step.Applied
            self.sow("layers", "scores", scores(q_BQHK, k_BSHK, bias), reduce_fn=_last)
        if self.is_mutable_collection("attention"):  # someone looks: see flaxlm.look
            found = weights(q_BQHK, k_BSHK, mask, bias)
            self.sow("attention", "weights", found, reduce_fn=_last)
        dropout = self.dropout(name="dropout").acting(train)
        out_BQHK = attend(q_BQHK, k_BSHK, v_BSHK, mask, bias, dropout, layer="/".join(self.path))
        # Said twice: left to itself, XLA exchanges the weights instead of the result.
        out_BQHK = constrain(out_BQHK, "batch", length, heads, "head_dim")
        out_BQHK = constrain(out_BQHK, "batch", "length", "heads", "head_dim")
        if not heads_apart:
            out_BQHK = out_BQHK.reshape(*x_BQD.shape[:2], inner)
        y_BQD = project(
            self,
            "out",
            out_BQHK,
            x_BQD.shape[-1],
            ("heads", "embed"),
            self.out_init or self.kernel_init,
            self.bias_init,
            inputs=2 if heads_apart else 1,
        )
        y_BQD = checkpoint_name(y_BQD, "attention_out")
        return self.out_dropout(name="out_dropout")(y_BQD, train=train)

    def _past(self):
        """(keys, values) of earlier calls; None where there are none."""
        if not self.has_variable("past", "keys"):
            return None
        return self.get_variable("past", "keys"), self.get_variable("past", "values")


def _last(old, new):
    return new
