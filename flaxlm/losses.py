"""Cross-entropy that never holds the fp32 logits of a long sequence at once.

A model does not return logits, it returns a `Readout`: the last hidden states and the matrix that
turns them into logits. Whoever needs all logits asks for them; a loss asks for cross-entropy and
gets it in chunks of positions, in fp32, whatever the compute type. Shapes: `B` batch, `L` length,
`D` width, `V` vocabulary (padded).
"""

import jax
import jax.numpy as jnp
from flax import struct

from flaxlm.nn.linear import matmul
from flaxlm.sharding import axis_size, constrain

# Above this many bytes of fp32 logits per device, work in chunks of at most this size.
CHUNK_BYTES = 256 * 2**20

_MASKED = (
    -1e30
)  # logit of a padding entry of the vocabulary: exp() is exactly 0 and no inf - inf can arise


class Readout(struct.PyTreeNode):
    """Logits that have not been computed yet: `hidden @ kernel (+ bias)`.

    Attributes:
      hidden: [B, L, D] in the compute type, already scaled as the family wants it.
      kernel: [D, V], or [V, D] with `transposed` (a tied embedding table); cast to hidden's type
        when used.
      bias: [V] or None.
      vocab: number of real entries; logits at and above it are masked.
      transposed: whether kernel is [V, D].
      length: dim name of L.
    """

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None
    vocab: int = struct.field(pytree_node=False, default=0)
    transposed: bool = struct.field(pytree_node=False, default=False)
    length: str = struct.field(pytree_node=False, default="length")

    @property
    def width(self) -> int:
        """V, padding included."""
        return self.kernel.shape[0 if self.transposed else 1]

    def logits(self, hidden: jax.Array | None = None) -> jax.Array:
        """[..., V] fp32 logits of `hidden` [..., D] (default: all positions)."""
        hidden = self.hidden if hidden is None else hidden
        kernel = self.kernel.T if self.transposed else self.kernel
        logits = matmul(hidden, kernel, dtype=jnp.float32)
        if self.bias is not None:
            logits = logits + self.bias.astype(jnp.float32).reshape(
                (1,) * (logits.ndim - 1) + (-1,)
            )
        if self.vocab < self.width:
            real = jnp.arange(self.width) < self.vocab
            logits = jnp.where(real.reshape((1,) * (logits.ndim - 1) + (-1,)), logits, _MASKED)
        return logits

    def take(self, positions: jax.Array) -> "Readout":
        """The readout at `positions` [B, N] of each row: hidden [B, N, D]. Logits of the other
        positions are never computed.
        """
        taken = jnp.take_along_axis(self.hidden, positions[..., None], axis=1, mode="clip")
        return self.replace(hidden=constrain(taken, "batch", "slots", "width"), length="slots")

    def at(self, position: jax.Array) -> jax.Array:
        """[B, V] logits at one position (a traced integer)."""
        return self.logits(
            jax.lax.dynamic_index_in_dim(self.hidden, position, axis=1, keepdims=False)
        )


def cross_entropy(readout: Readout, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of `targets` and log-partition, per position, in fp32.

    Args:
      readout: of [B, L, D] hidden states.
      targets: [B, L] ids below readout.vocab.

    Returns:
      (nll, log_z), both [B, L] fp32. log_z is log sum exp of the logits (for z-loss).
    """

    def score(hidden, targets):
        logits = constrain(readout.logits(hidden), "batch", readout.length, "vocab")
        return _token_loss(logits, targets)

    return _in_chunks(readout, score, targets)


def sample(readout: Readout, key: jax.Array) -> jax.Array:
    """[B, L] int32: one id per position, drawn from the softmax of its logits. Not differentiable.

    Gumbel noise is added to the logits and the largest taken, which is an exact draw (Maddison et
    al. 2014); chunked as `cross_entropy` is.
    """
    rows, length, _ = readout.hidden.shape
    keys = jax.random.split(key, (rows, length))

    def draw(hidden, keys):
        logits = constrain(readout.logits(hidden), "batch", readout.length, "vocab")
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
        return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)

    return jax.lax.stop_gradient(_in_chunks(readout, draw, keys))


def soft_cross_entropy(student: Readout, teacher: Readout, temperature: float) -> jax.Array:
    """[B, L] fp32: KL divergence of the student's distribution from the teacher's, both softened by
    `temperature`, per position and not yet multiplied by its square. No gradient to the teacher.
    """

    def score(hidden, teacher_hidden):
        logits = constrain(student.logits(hidden), "batch", student.length, "vocab")
        wanted = jax.lax.stop_gradient(teacher.logits(teacher_hidden))
        log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
        log_q = jax.nn.log_softmax(wanted[..., : logits.shape[-1]] / temperature, axis=-1)
        return (jnp.exp(log_q) * (log_q - log_p)).sum(axis=-1)

    return _in_chunks(student, score, teacher.hidden)


def _in_chunks(readout: Readout, function, *others):
    """`function(hidden, *others)` over all positions, a part of them at a time where their logits
    would be too large. Results are [B, L], one array or a tuple.
    """
    batch, length, _ = readout.hidden.shape
    chunks = _chunks(batch, length, readout.width, readout.length)
    if chunks == 1:
        return function(readout.hidden, *others)

    # Chunk i holds positions i, i + chunks, ...: with the length sharded over devices, every device
    # works in every chunk. The checkpoint makes the backward pass recompute a chunk's logits
    # instead of storing them.
    def split(x):
        return jnp.moveaxis(x.reshape(batch, length // chunks, chunks, *x.shape[2:]), 2, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 2).reshape(batch, length)

    found = jax.lax.map(
        jax.checkpoint(lambda chunk: function(*chunk)), tuple(map(split, (readout.hidden, *others)))
    )
    return jax.tree.map(join, found)


def _chunks(batch: int, length: int, width: int, name: str) -> int:
    """Smallest divisor of the length per device that brings a chunk's logits under CHUNK_BYTES
    per device.
    """
    rows, shards = axis_size("batch"), axis_size(name)
    local_length = length // shards
    local_bytes = 4 * (batch // rows) * local_length * (width // axis_size("vocab"))
    for chunks in range(1, local_length + 1):
        if local_length % chunks == 0 and local_bytes // chunks <= CHUNK_BYTES:
            return chunks
    return max(local_length, 1)


@jax.custom_vjp
def _token_loss(logits, targets):
    """logits [..., V] fp32, targets [...] -> (nll, log_z) [...]. One pass over the logits each
    way.
    """
    return _token_loss_forward(logits, targets)[0]


def _token_loss_forward(logits, targets):
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    log_z = jnp.log(jnp.exp(logits - top).sum(axis=-1)) + top[..., 0]
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (log_z - picked, log_z), (logits, targets, log_z)


def _token_loss_backward(saved, cotangents):
    # d nll / d logits = softmax - onehot; d log_z / d logits = softmax.
    logits, targets, log_z = saved
    d_nll, d_log_z = cotangents
    probabilities = jnp.exp(logits - log_z[..., None])
    entries = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    hit = (entries == targets[..., None]).astype(logits.dtype)
    return (d_nll + d_log_z)[..., None] * probabilities - d_nll[..., None] * hit, None


_token_loss.defvjp(_token_loss_forward, _token_loss_backward)
