"""Cross-entropy that never holds the fp32 logits of a long sequence at once.

A model does not return logits, it returns a `Readout`: the last hidden states and the matrix that
turns them into logits. Whoever needs all logits asks for them; a loss asks for cross-entropy and
gets it in chunks of positions, in fp32, whatever the compute type. Shapes: `B` batch, `L` length,
`D` width, `V` vocabulary (padded).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from flaxlm.chunks import Score, finished, join, scored, split
from flaxlm.nn.linear import matmul
from flaxlm.sharding import axis_size, constrain

# Above this many bytes of fp32 logits per device, work in chunks of at most this size.
CHUNK_BYTES = 256 * 2**20


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
        logits = matmul(hidden, self.kernel, dtype=jnp.float32, transposed=self.transposed)
        return finished(self, logits, self.bias, jnp.arange(self.width))

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
    return scored(_CrossEntropy(), [readout], [targets], chunks=_chunks(readout))


def judged(readout: Readout, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([B, L] fp32 negative log-likelihood of `targets`, [B, L] booleans: none is more likely).
    Not differentiable.
    """
    return scored(_Judged(), [readout], [targets], chunks=_chunks(readout))


def soft_cross_entropy(student: Readout, teacher: Readout, temperature: float) -> jax.Array:
    """[B, L] fp32: KL divergence of the student's distribution from the teacher's, both softened by
    `temperature`, per position and not yet multiplied by its square. No gradient to the teacher.
    """
    assert student.width == teacher.width, (student.width, teacher.width)
    chunks = _chunks(student, teacher)
    return scored(_SoftCrossEntropy(temperature), [student, teacher], [], chunks=chunks)


def sample(readout: Readout, key: jax.Array) -> jax.Array:
    """[B, L] int32: one id per position, drawn from the softmax of its logits. Not differentiable.

    Gumbel noise is added to the logits and the largest taken, which is an exact draw (Maddison et
    al. 2014); in chunks, as `cross_entropy`.
    """
    rows, length, _ = readout.hidden.shape
    keys = jax.random.split(key, (rows, length))
    # Over the mesh once, not in every turn of the loop.
    names = ("vocab", "width") if readout.transposed else ("width", "vocab")
    kernel = constrain(readout.kernel.astype(readout.hidden.dtype), *names)
    readout = jax.lax.stop_gradient(readout.replace(kernel=kernel))

    def draw(hidden, keys):
        logits = constrain(readout.logits(hidden), "batch", readout.length, "vocab")
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
        return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)

    chunks = _chunks(readout)
    if chunks == 1:
        return draw(readout.hidden, keys)
    return join(jax.lax.map(lambda chunk: draw(*chunk), split((readout.hidden, keys), chunks)))


def _chunks(*readouts: Readout) -> int:
    """Smallest divisor of the length per device that brings a chunk's logits under CHUNK_BYTES
    per device.
    """
    batch, length, _ = readouts[0].hidden.shape
    local_length = length // axis_size(readouts[0].length)
    widths = sum(readout.width // axis_size("vocab") for readout in readouts)
    local_bytes = 4 * (batch // axis_size("batch")) * local_length * widths
    for chunks in range(1, local_length + 1):
        if local_length % chunks == 0 and local_bytes // chunks <= CHUNK_BYTES:
            return chunks
    return max(local_length, 1)


class _CrossEntropy(Score):
    """Of targets [B, L]: results (nll, log_z)."""

    def forward(self, slices, targets):
        (found,) = slices
        log_z = found.log_normalizer()
        return (log_z - found.pick(targets), log_z), log_z

    def backward(self, slices, log_z, cotangents, targets):
        # d nll / d logits = softmax - onehot; d log_z / d logits = softmax.
        (found,) = slices
        d_nll, d_log_z = (cotangent[..., None] for cotangent in cotangents)
        probabilities = jnp.exp(found.logits - log_z[..., None])
        return (d_nll + d_log_z) * probabilities - jnp.where(found.hits(targets), d_nll, 0.0)


class _Judged(Score):
    """Of targets [B, L]: results (nll, whether no entry is more likely)."""

    def forward(self, slices, targets):
        (found,) = slices
        picked = found.pick(targets)
        return (found.log_normalizer() - picked, picked >= found.top()), ()

    def backward(self, slices, saved, cotangents, targets):
        raise TypeError("judged() has no derivative")


@dataclass(frozen=True)
class _SoftCrossEntropy(Score):
    """Of a student's and a teacher's logits: sum q (log q - log p)."""

    temperature: float

    def forward(self, slices):
        student, teacher = self._softened(slices)
        saved = student.log_normalizer(), teacher.log_normalizer()
        log_p, log_q = self._log_probabilities(student, teacher, saved)
        return student.total(jnp.exp(log_q) * (log_q - log_p)), saved

    def backward(self, slices, saved, cotangents):
        log_p, log_q = self._log_probabilities(*self._softened(slices), saved)
        return (jnp.exp(log_p) - jnp.exp(log_q)) * (cotangents / self.temperature)[..., None]

    def _softened(self, slices):
        return [found._replace(logits=found.logits / self.temperature) for found in slices]

    def _log_probabilities(self, student, teacher, saved):
        return [
            found.logits - normalizer[..., None]
            for found, normalizer in zip((student, teacher), saved, strict=True)
        ]
