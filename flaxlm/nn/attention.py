"""Attention: one function that attends, one module with the projections around it.

`B` batch, `Q` queries, `S` keys, `D` width, `H` heads, `K` head dim.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxlm.nn.dropout import Dropout
from flaxlm.nn.linear import matmul, matmul_each
from flaxlm.sharding import constrain, param

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

    The scores are not scaled: a family that scales does it to q, or folds it in q's initializer as T5 does.

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
        s_BHQS = s_BHQS + bias
    w_BHQS = jax.nn.softmax(jnp.where(mask, s_BHQS, _MASKED), axis=-1)
    w_BHQS = dropout(w_BHQS.astype(q_BQHK.dtype))
    return jnp.einsum("BHQS,BSHK->BQHK", w_BHQS, v_BSHK)


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
        memory_BSD: jax.Array | None,
        *,
        mask: jax.Array,
        bias: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """[B, Q, D]: `x` attends to `memory`, or to itself where memory is None. `mask`, `bias`: see `attend`."""
        inner = self.heads * self.head_dim
        width = x_BQD.shape[-1]

        def kernel(name, init, rows):
            return self.param(name, param(init, "embed", "heads"), (rows, inner), jnp.float32)

        query = kernel("query", self.query_init, width)
        rows = width if memory_BSD is None else memory_BSD.shape[-1]
        key, value = kernel("key", self.kernel_init, rows), kernel("value", self.kernel_init, rows)
        if memory_BSD is None:
            q, k, v = matmul_each(x_BQD, (query, key, value))
        else:
            q = matmul(x_BQD, query)
            k, v = matmul_each(memory_BSD, (key, value))

        out_BQHK = attend(
            self._heads(q, "length"),
            self._heads(k, "keys"),
            self._heads(v, "keys"),
            mask=mask,
            bias=bias,
            dropout=lambda w: Dropout(self.dropout, shared=(2,), name="dropout")(w, train=train),
        )
        out = self.param(
            "out", param(self.kernel_init, "heads", "embed"), (inner, width), jnp.float32
        )
        return matmul(out_BQHK.reshape(*x_BQD.shape[:2], inner), out)

    def _heads(self, x: jax.Array, length: str) -> jax.Array:
        """[B, L, H*K] to [B, L, H, K], with the heads over the mesh."""
        x = checkpoint_name(x, "qkv").reshape(*x.shape[:2], self.heads, self.head_dim)
        return constrain(x, "batch", length, "heads", "head_dim")
