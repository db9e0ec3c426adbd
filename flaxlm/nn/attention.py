"""Attention: one function that attends, one module with the projections around it.

`B` batch, `Q` queries, `S` keys, `D` width, `H` heads, `K` head dim.
"""

from collections.abc import Callable
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import project
from flaxlm.nn.relative import Relative, RelativeScores
from flaxlm.sharding import axis_size, constrain

_MASKED = -1e30  # finite: a row without any visible key becomes uniform instead of NaN


def attend(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    mask: jax.Array,
    bias: jax.Array | None,
    dropout: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """softmax(q k + bias) v over the visible keys, softmax in fp32.

    The scores are not scaled: a family that scales does it to q, or folds it in q's initializer as
    T5 does.

    Args:
      q_BQHK: queries.
      k_BSHK: keys.
      v_BSHK: values.
      mask: [B or 1, 1, Q, S] booleans, True where a query sees a key.
      bias: [1 or B, H, Q, S] fp32, added to the scores.
      dropout: applied to the attention weights [B, H, Q, S].

    Returns:
      [B, Q, H, K] in q's type.
    """
    s_BHQS = scores(q_BQHK, k_BSHK, bias)
    w_BHQS = jax.nn.softmax(jnp.where(mask, s_BHQS, _MASKED), axis=-1)
    w_BHQS = dropout(w_BHQS.astype(q_BQHK.dtype))
    return jnp.einsum("BHQS,BSHK->BQHK", w_BHQS, v_BSHK)


def scores(q_BQHK: jax.Array, k_BSHK: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[B, H, Q, S] fp32 attention scores before mask and softmax; arguments as `attend`."""
    s_BHQS = jnp.einsum("BQHK,BSHK->BHQS", q_BQHK, k_BSHK, preferred_element_type=jnp.float32)
    if bias is None:
        return s_BHQS
    return _add_bias(s_BHQS, bias) if len(bias) == 1 else s_BHQS + bias


@jax.custom_vjp
def _add_bias(s_BHQS: jax.Array, bias_1HQS: jax.Array) -> jax.Array:
    return s_BHQS + bias_1HQS


def _add_bias_backward(_, d_BHQS: jax.Array):
    # XLA's CPU compiler sums over the batch on one core; additions it splits over all of them.
    def rows_added(d_BHQS):
        return reduce(jnp.add, [d_BHQS[row : row + 1] for row in range(len(d_BHQS))])

    def summed(d_BHQS):
        return d_BHQS.sum(axis=0, keepdims=True)

    whole = axis_size("batch") == 1  # slices of a batch that is split over devices would move it
    if not whole:
        return d_BHQS, summed(d_BHQS)
    return d_BHQS, jax.lax.platform_dependent(d_BHQS, cpu=rows_added, default=summed)


_add_bias.defvjp(lambda s_BHQS, bias_1HQS: (_add_bias(s_BHQS, bias_1HQS), None), _add_bias_backward)


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
        mask: jax.Array,
        bias: jax.Array | Relative | None = None,
        rotation: Callable[[jax.Array], jax.Array] | None = None,
        train: bool,
    ) -> jax.Array:
        """[B, Q, D]: `x` attends to `memory`, which is `x` in self-attention.

        Args:
          mask, bias: see `attend`. A `Relative` bias is computed here from queries and keys, with
            parameters "relative" (nn.relative.RelativeScores).
          rotation: turns queries and keys [B, L, H, K] by their positions (nn.positions.Rotation).
        """
        inner = self.heads * self.head_dim

        def heads_of(x, name, init, length):
            init = init or self.kernel_init
            y = project(self, name, x, inner, ("embed", "heads"), init, self.bias_init)
            y = checkpoint_name(y, "qkv").reshape(*x.shape[:2], self.heads, self.head_dim)
            return constrain(y, "batch", length, "heads", "head_dim")

        q_BQHK = heads_of(x_BQD, "query", self.query_init, "length")
        k_BSHK = heads_of(memory_BSD, "key", None, "keys")
        v_BSHK = heads_of(memory_BSD, "value", None, "keys")
        if isinstance(bias, Relative):
            relative = RelativeScores(self.heads, self.head_dim, self.kernel_init, name="relative")
            bias = relative(q_BQHK, k_BSHK, bias.encoding) * self.scale
        if rotation is not None:
            q_BQHK, k_BSHK = rotation(q_BQHK), rotation(k_BSHK)
        if self.scale != 1.0:
            q_BQHK = q_BQHK * self.scale
        if self.is_mutable_collection("layers"):  # someone asked for them: see step.Applied
            self.sow("layers", "scores", scores(q_BQHK, k_BSHK, bias), reduce_fn=_last)
        out_BQHK = attend(
            q_BQHK,
            k_BSHK,
            v_BSHK,
            mask=mask,
            bias=bias,
            dropout=lambda w: self.dropout(name="dropout")(w, train=train),
        )
        init, out_BQI = self.out_init or self.kernel_init, out_BQHK.reshape(*x_BQD.shape[:2], inner)
        width = x_BQD.shape[-1]
        y_BQD = project(self, "out", out_BQI, width, ("heads", "embed"), init, self.bias_init)
        return self.out_dropout(name="out_dropout")(y_BQD, train=train)


def _last(old, new):
    return new
