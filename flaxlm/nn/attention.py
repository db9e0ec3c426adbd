"""Attention: one function that attends, one module with the projections around it.

`B` batch, `Q` queries, `S` keys, `D` width, `H` heads, `K` head dim.
"""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import matmul
from flaxlm.sharding import axis_size, constrain, param

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
      bias: [1, H, Q, S] fp32, added to the scores.
      dropout: applied to the attention weights [B, H, Q, S].

    Returns:
      [B, Q, H, K] in q's type.
    """
    s_BHQS = jnp.einsum("BQHK,BSHK->BHQS", q_BQHK, k_BSHK, preferred_element_type=jnp.float32)
    if bias is not None:
        s_BHQS = _add_bias(s_BHQS, bias)
    w_BHQS = jax.nn.softmax(jnp.where(mask, s_BHQS, _MASKED), axis=-1)
    w_BHQS = dropout(w_BHQS.astype(q_BQHK.dtype))
    return jnp.einsum("BHQS,BSHK->BQHK", w_BHQS, v_BSHK)


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
    """Multi-head attention without biases: kernels query, key, value [D, H*K] and out [H*K, D].

    Attributes:
      heads: H.
      head_dim: K; H * K need not be D.
      query_init: initializer of the query kernel.
      kernel_init: initializer of the other kernels.
      dropout: rate on the attention weights, noise shared by all queries.
    """

    heads: int
    head_dim: int
    query_init: Callable
    kernel_init: Callable
    dropout: float

    @nn.compact
    def __call__(
        self,
        x_BQD: jax.Array,
        memory_BSD: jax.Array,
        *,
        mask: jax.Array,
        bias: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """[B, Q, D]: `x` attends to `memory`, which is `x` in self-attention; for the rest see
        `attend`.
        """
        inner = self.heads * self.head_dim

        def project(x, name, init, length):
            kernel = self.param(
                name, param(init, "embed", "heads"), (x.shape[-1], inner), jnp.float32
            )
            y = checkpoint_name(matmul(x, kernel), "qkv")
            y = y.reshape(*x.shape[:2], self.heads, self.head_dim)
            return constrain(y, "batch", length, "heads", "head_dim")

        out_BQHK = attend(
            project(x_BQD, "query", self.query_init, "length"),
            project(memory_BSD, "key", self.kernel_init, "keys"),
            project(memory_BSD, "value", self.kernel_init, "keys"),
            mask=mask,
            bias=bias,
            dropout=lambda w: Dropout(self.dropout, shared=(2,), name="dropout")(w, train=train),
        )
        width = x_BQD.shape[-1]
        out = self.param(
            "out", param(self.kernel_init, "heads", "embed"), (inner, width), jnp.float32
        )
        return matmul(out_BQHK.reshape(*x_BQD.shape[:2], inner), out)
