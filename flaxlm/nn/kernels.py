"""The ways to compute attention, all with one signature and one meaning, and the rule that picks
one.

  reference  plain XLA: the scores of all pairs exist.
  chunked    XLA over some queries at a time, recomputed in the backward pass: where those scores
             would be large.
  splash     a Pallas kernel for TPUs (nn/fused.py, nn/splash.py).
  cudnn      a fused kernel for NVIDIA GPUs (nn/fused.py).

The rule looks at the devices that the program is for, at shapes and types, and at what is asked:
what a kernel cannot do goes to XLA. No option chooses. `B` batch, `Q` queries, `S` keys, `H` heads,
`K` head dim.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import jax
import jax.numpy as jnp

from flaxlm.nn import fused
from flaxlm.nn.masks import Mask
from flaxlm.sharding import attention_axes, axis_size, constrain, platform

# More bytes of fp32 scores per device than this are computed in chunks, ...
WHOLE_BYTES = 512 * 2**20
# ... of at most this size.
CHUNK_BYTES = 64 * 2**20

_ROWS_ADDED = 1024  # most rows of a batch that are added one by one
_MASKED = -1e30  # finite: a row without any visible key becomes uniform instead of NaN

Drop = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Path:
    """One of the ways above, and why it was taken."""

    name: str
    reason: str


def path_of(
    q_BQHK: jax.Array, k_BSHK: jax.Array, mask: Mask, bias: jax.Array | None, dropout: Drop | None
) -> Path:
    """The way to attend under the current layout. Arguments as `attend`; of the arrays shapes and
    types are read.
    """
    if dropout is not None:
        return Path("reference", "dropout of attention weights")
    if mask.first is not None:
        return Path("reference", "a step of generation")
    if bias is not None and len(bias) > 1:
        return Path("reference", "relative scores of every row")
    kind = platform()
    name = fused.KERNELS.get(kind)
    obstacle = f"no kernel for {kind}s"
    if name is not None:
        obstacle = fused.obstacle(name, q_BQHK, k_BSHK, mask, bias)
        if obstacle is None:
            return Path(name, f"kernel for {kind}s")
    size = _score_bytes(q_BQHK.shape, k_BSHK.shape[1])
    if size > WHOLE_BYTES:
        return Path("chunked", f"{obstacle}; {size / 2**30:.1f} GiB of scores per device")
    return Path("reference", obstacle)


def attend(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    bias: jax.Array | None = None,
    dropout: Drop | None = None,
    *,
    layer: str = "attention",
) -> jax.Array:
    """softmax(q k + bias) v over the visible keys, softmax in fp32, on the path of `path_of`.

    The scores are not scaled: a family that scales does it to q, or folds it in q's initializer as
    T5 does. What a query gets that sees no key means nothing, but is finite.

    Args:
      q_BQHK: queries.
      k_BSHK: keys.
      v_BSHK: values.
      mask: which query sees which key.
      bias: [1 or B, H, Q, S] fp32, added to the scores.
      dropout: applied to the attention weights [B, H, Q, S]; None: there is none.
      layer: what this is called in the record of a run.

    Returns:
      [B, Q, H, K] in q's type. `jax.checkpoint` policies know it, or what of it the backward pass
      reads, as "attention".
    """
    path = path_of(q_BQHK, k_BSHK, mask, bias, dropout)
    mask = _laid_out(mask, attention_axes(q_BQHK.shape[2])[0])
    _note(layer, path, q_BQHK.shape[1], k_BSHK.shape[1])
    out_BQHK = PATHS[path.name](q_BQHK, k_BSHK, v_BSHK, mask, bias, dropout)
    if path.name == "splash":  # its residuals have the name already
        return out_BQHK
    return jax.ad_checkpoint.checkpoint_name(out_BQHK, "attention")


def _laid_out(mask: Mask, length: str) -> Mask:
    """Segments where the scores are: else XLA compares them elsewhere and moves what it found."""
    if mask.query_segments is None:
        return mask
    queries_BQ = constrain(mask.query_segments, "batch", length)
    if mask.key_segments is None and length == "keys":
        return mask.replace(query_segments=queries_BQ)
    keys_BS = constrain(mask.keys(), "batch", "keys")
    return mask.replace(query_segments=queries_BQ, key_segments=keys_BS)


def reference(q_BQHK, k_BSHK, v_BSHK, mask, bias=None, dropout=None) -> jax.Array:
    """Plain XLA. Arguments as `attend`."""
    seen = mask.dense(q_BQHK.shape[1], k_BSHK.shape[1])
    return _weighted(q_BQHK, k_BSHK, v_BSHK, seen, bias, dropout)


def _weighted(q_BQHK, k_BSHK, v_BSHK, seen, bias, dropout):
    w_BHQS = _softmax(scores(q_BQHK, k_BSHK, bias), seen).astype(q_BQHK.dtype)
    if dropout is not None:
        w_BHQS = dropout(w_BHQS)
    return jnp.einsum("BHQS,BSHK->BQHK", w_BHQS, v_BSHK)


def weights(q_BQHK: jax.Array, k_BSHK: jax.Array, mask: Mask, bias: jax.Array | None) -> jax.Array:
    """[B, H, Q, S] fp32 attention weights without dropout, to be looked at; arguments as `attend`,
    whose fused kernels never hold them.
    """
    seen = mask.dense(q_BQHK.shape[1], k_BSHK.shape[1])
    return _softmax(scores(q_BQHK, k_BSHK, bias), seen)


def _softmax(s_BHQS: jax.Array, seen: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.where(seen, s_BHQS, _MASKED), axis=-1)


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

    # Slices of a batch that is split over devices would move it; very many of them would make the
    # program itself the cost.
    whole = axis_size("batch") == 1 and len(d_BHQS) <= _ROWS_ADDED
    if not whole:
        return d_BHQS, summed(d_BHQS)
    return d_BHQS, jax.lax.platform_dependent(d_BHQS, cpu=rows_added, default=summed)


_add_bias.defvjp(lambda s_BHQS, bias_1HQS: (_add_bias(s_BHQS, bias_1HQS), None), _add_bias_backward)


def chunked(q_BQHK, k_BSHK, v_BSHK, mask, bias=None, dropout=None) -> jax.Array:
    """As `reference`, to rounding, over some queries at a time. Arguments as `attend`, no dropout.

    Chunk i holds queries i, i + n, ...: with the length split over devices, every device works in
    every chunk.
    """
    assert dropout is None, "dropout needs all weights"
    _, queries, heads, _ = q_BQHK.shape
    keys = k_BSHK.shape[1]
    count = _chunks(q_BQHK.shape, keys)
    length, heads = attention_axes(heads)

    def split(x, dim):
        if x is None:
            return None
        shape = (*x.shape[:dim], queries // count, count, *x.shape[dim + 1 :])
        return jnp.moveaxis(x.reshape(shape), dim + 1, 0)

    extra = mask.extra
    if extra is not None:
        extra = jnp.broadcast_to(extra, (len(extra), 1, queries, keys))
    mask = mask.replace(key_segments=mask.keys())

    def one(part):
        q_BQHK, positions_Q, segments_BQ, extra, bias = part
        q_BQHK = constrain(q_BQHK, "batch", length, heads, "head_dim")
        seen = mask.replace(query_segments=segments_BQ, extra=extra).dense_at(positions_Q, keys)
        out_BQHK = _weighted(q_BQHK, k_BSHK, v_BSHK, seen, bias, None)
        return constrain(out_BQHK, "batch", length, heads, "head_dim")

    parts = (
        split(q_BQHK, 1),
        split(jnp.arange(queries), 0),
        split(mask.query_segments, 1),
        split(extra, 2),
        split(bias, 2),
    )
    found = jax.lax.map(jax.checkpoint(one), parts)
    return jnp.moveaxis(found, 0, 2).reshape(q_BQHK.shape)


def _score_bytes(shape: tuple[int, ...], keys: int) -> int:
    batch, queries, heads, _ = shape
    length_axis, heads_axis = attention_axes(heads)
    ways = axis_size("batch") * axis_size(length_axis) * axis_size(heads_axis)
    return 4 * batch * queries * heads * keys // ways


def _chunks(shape: tuple[int, ...], keys: int) -> int:
    """Smallest divisor of a device's queries that brings their scores under CHUNK_BYTES."""
    local = shape[1] // axis_size(attention_axes(shape[2])[0])
    size = _score_bytes(shape, keys)
    fits = (n for n in range(1, local + 1) if local % n == 0 and size // n <= CHUNK_BYTES)
    return next(fits, local)


PATHS: Mapping[str, Callable] = {
    "reference": reference,
    "chunked": chunked,
    "splash": fused.splash,
    "cudnn": fused.cudnn,
}

_record: contextvars.ContextVar[dict | None] = contextvars.ContextVar("record", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[dict[Path, dict[str, None]]]:
    """{path: the layers that take it, as keys} of everything traced inside."""
    found: dict[Path, dict[str, None]] = {}
    token = _record.set(found)
    try:
        yield found
    finally:
        _record.reset(token)


def _note(layer: str, path: Path, queries: int, keys: int) -> None:
    found = _record.get()
    if found is not None:
        found.setdefault(path, {})[f"{layer} {queries} x {keys}"] = None


def described(found: Mapping[Path, Mapping[str, None]]) -> str:
    """A record in one line: which path, why, and for which layers."""
    return "; ".join(
        f"{path.name} ({path.reason}): {', '.join(layers)}" for path, layers in found.items()
    )
