"""Scores of logits that are never whole: a part of the positions at a time, and of the vocabulary
only what this device holds.

The program is written per device. A kernel is gathered over its "embed" dim once, not once per
part, and its gradient is one fp32 sum in the device's memory until the last part has been added to
it; only then do devices exchange it. Left to the compiler, both would happen in every turn of the
loop. What the backward pass needs of the logits it computes again, unless all fit at once.

`B` batch, `L` length, `D` width, `V` vocabulary; all of one device inside of `Score`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxlm import sharding
from flaxlm.nn.linear import gradients, matmul

_MASKED = -1e30  # of a padding entry: exp() is exactly 0, and no inf - inf can arise


class Slice(NamedTuple):
    """The logits that one device holds.

    Attributes:
      logits: [B, L, V] fp32.
      entries: [V], which entries of the vocabulary they are.
      axes: mesh axes over which the vocabulary is split.
    """

    logits: jax.Array
    entries: jax.Array
    axes: tuple[str, ...]

    def total(self, x: jax.Array) -> jax.Array:
        """[B, L]: sum of x [B, L, V] over the whole vocabulary."""
        return _sum(x.sum(axis=-1), self.axes)

    def top(self) -> jax.Array:
        """[B, L]: the largest logit of the whole vocabulary."""
        top = self.logits.max(axis=-1)
        return jax.lax.pmax(top, self.axes) if self.axes else top

    def log_normalizer(self) -> jax.Array:
        """[B, L]: log sum exp over the whole vocabulary."""
        top = self.top()
        return jnp.log(self.total(jnp.exp(self.logits - top[..., None]))) + top

    def pick(self, ids: jax.Array) -> jax.Array:
        """[B, L]: the logits of `ids` [B, L]."""

        def summed(logits, ids):  # a device has at most one of them among its own
            return jnp.where(self.entries.reshape(1, 1, -1) == ids[..., None], logits, 0.0).sum(-1)

        def gathered(logits, ids):
            places = ids - self.entries[0]
            found = jnp.take_along_axis(logits, places[..., None], axis=-1, mode="clip")[..., 0]
            return jnp.where((places >= 0) & (places < self.entries.size), found, 0.0)

        # XLA's CPU compiler writes all of what is summed to memory; others fuse the two.
        picked = jax.lax.platform_dependent(self.logits, ids, cpu=gathered, default=summed)
        return _sum(picked, self.axes)

    def hits(self, ids: jax.Array) -> jax.Array:
        """[B, L, V] booleans: which entry is the one of `ids` [B, L]."""
        return self.entries.reshape(1, 1, -1) == ids[..., None]


class Score(ABC):
    """A function of the logits of each position on its own, with its derivative."""

    @abstractmethod
    def forward(self, slices: Sequence[Slice], *others: jax.Array) -> tuple[Any, Any]:
        """Results and what `backward` needs of them: trees of arrays [B, L].

        Args:
          slices: logits, one of each readout.
          *others: arrays [B, L, ...] at the same positions.
        """

    @abstractmethod
    def backward(self, slices: Sequence[Slice], saved, cotangents, *others: jax.Array) -> jax.Array:
        """[B, L, V]: cotangent of the first slice's logits. No other argument gets any."""


def scored(score: Score, readouts: Sequence, others: Sequence[jax.Array], *, chunks: int):
    """The results of `score` at all positions: trees of [B, L]. Differentiable in hidden states,
    kernel and bias of the first readout.

    Args:
      readouts: `losses.Readout`s of the same positions and the same vocabulary.
      others: arrays [B, L, ...].
      chunks: parts that the positions of a device are worked through in.
    """
    work = _Work(score, readouts, others, chunks)

    @jax.custom_vjp
    def results(operands, others):
        return work.forward(operands, others)[0][0]

    def forward(operands, others):
        (found, saved), kept = work.forward(operands, others)
        return found, (operands, others, saved, kept)

    def backward(residuals, cotangents):
        return (work.backward(*residuals, cotangents), *(None for _ in readouts[1:])), None

    results.defvjp(forward, backward)
    operands = tuple((readout.hidden, readout.kernel, readout.bias) for readout in readouts)
    return results(operands, tuple(others))


class _Work:
    """One call of `scored`: `forward` and `backward` over all devices, the rest on each."""

    def __init__(self, score, readouts, others, chunks):
        self.score, self.readouts, self.chunks = score, readouts, chunks
        self.layout = sharding.current()
        self.split = self.layout.mesh is not None and self.layout.mesh.size > 1
        tokens = ("batch", readouts[0].length)
        self.vocab_axes, self.embed_axes, self.token_axes = (
            self._axes("vocab"), self._axes("embed"), self._axes(*tokens)
        )  # fmt: skip
        # Devices along the "embed" axes hold other tokens each (that is fsdp): they may sum the
        # gradient of the kernel and keep their pieces of it in one go.
        self.scatter = bool(self.embed_axes) and set(self.embed_axes) <= set(self.token_axes)
        self.kernel_names = tuple(
            ("vocab", "embed") if readout.transposed else ("embed", "vocab") for readout in readouts
        )
        # Dim names of all that goes in and out.
        self.tokens, self.logits = tokens, (*tokens, "vocab")
        self.layout.spec(self.logits)  # raises where one mesh axis would split two of these dims
        self.operands = tuple(
            ((*tokens, "width"), kernel, None if readout.bias is None else ("vocab",))
            for readout, kernel in zip(readouts, self.kernel_names, strict=True)
        )
        self.others = tuple((*tokens, *(None,) * (x.ndim - 2)) for x in others)

    def forward(self, operands, others):
        """((results, saved), logits if they may be kept)."""
        return self._on_devices(
            self._forward, (self.operands, self.others), (self.tokens, self.logits)
        )(operands, others)

    def backward(self, operands, others, saved, kept, cotangents):
        """Cotangents of the first readout's operands."""
        first = self.operands[0]
        if not self.scatter:  # every device has all of D
            names = tuple(None if name == "embed" else name for name in first[1])
            first = (first[0], names, first[2])
        return self._on_devices(
            self._backward,
            (self.operands, self.others, self.tokens, self.logits, self.tokens),
            first,
        )(operands, others, saved, kept, cotangents)

    def _on_devices(self, function, arguments, results):
        if not self.split:
            return function
        arguments, results = (
            jax.tree.map(self.layout.spec, names, is_leaf=_are_names)
            for names in (arguments, results)
        )
        return jax.shard_map(
            function, mesh=self.layout.mesh, in_specs=arguments, out_specs=results, check_vma=False
        )

    def _axes(self, *names):
        """The mesh axes of more than one device that dims of these names are split over."""
        if not self.split:
            return ()
        entries = [entry for entry in self.layout.spec(names) if entry]
        return tuple(
            axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry)
        )

    def _forward(self, operands, others):
        kernels, hiddens = self._kernels(operands), tuple(hidden for hidden, _, _ in operands)

        def part(hiddens, others):
            slices = self._slices(hiddens, kernels, operands)
            return self.score.forward(slices, *others), [found.logits for found in slices]

        if self.chunks == 1:
            return part(hiddens, others)
        parts = split((hiddens, others), self.chunks)
        return join(jax.lax.map(lambda chunk: part(*chunk)[0], parts)), []

    def _backward(self, operands, others, saved, kept, cotangents):
        kernels, hiddens = self._kernels(operands), tuple(hidden for hidden, _, _ in operands)
        first, bias = self.readouts[0], operands[0][2]

        def part(sums, chunk):
            hiddens, others, saved, cotangents = chunk
            slices = self._slices(hiddens, kernels, operands, kept)
            d_logits = self.score.backward(slices, saved, cotangents, *others)
            d_hidden, d_kernel = gradients(
                hiddens[0], kernels[0], d_logits, dtype=jnp.float32, transposed=first.transposed
            )
            d_bias = None if bias is None else d_logits.sum(axis=(0, 1))
            return jax.tree.map(jnp.add, sums, (d_kernel, d_bias)), d_hidden

        sums = (
            jnp.zeros(kernels[0].shape, jnp.float32),
            None if bias is None else jnp.zeros(bias.shape, jnp.float32),
        )
        chunk = (hiddens, others, saved, cotangents)
        if self.chunks == 1:
            (d_kernel, d_bias), d_hidden = part(sums, chunk)
        else:
            (d_kernel, d_bias), d_hidden = jax.lax.scan(part, sums, split(chunk, self.chunks))
            d_hidden = join(d_hidden)
        axes = self.token_axes
        if self.scatter:
            d_kernel = jax.lax.psum_scatter(
                d_kernel, self.embed_axes, scatter_dimension=int(first.transposed), tiled=True
            )
            axes = tuple(axis for axis in axes if axis not in self.embed_axes)
        d_kernel = _sum(d_kernel, axes)
        if bias is not None:
            d_bias = _sum(d_bias, self.token_axes).astype(bias.dtype)
        return _sum(d_hidden, self.vocab_axes), d_kernel.astype(operands[0][1].dtype), d_bias

    def _kernels(self, operands):
        """The kernels of all readouts as they are, with all of D, in the compute type."""
        kernels = []
        for readout, (hidden, kernel, _) in zip(self.readouts, operands, strict=True):
            kernel = kernel.astype(hidden.dtype)
            if self.embed_axes:
                embed = int(readout.transposed)
                kernel = jax.lax.all_gather(kernel, self.embed_axes, axis=embed, tiled=True)
            kernels.append(kernel)
        return kernels

    def _slices(self, hiddens, kernels, operands, kept=()):
        slices = []
        for place, (readout, kernel) in enumerate(zip(self.readouts, kernels, strict=True)):
            vocab = kernel.shape[0 if readout.transposed else 1]
            entries = jnp.arange(vocab, dtype=jnp.int32)
            if self.vocab_axes:
                entries += jax.lax.axis_index(self.vocab_axes) * len(entries)
            if kept:
                logits = kept[place]
            else:
                logits = matmul(
                    hiddens[place], kernel, dtype=jnp.float32, transposed=readout.transposed
                )
                logits = finished(readout, logits, operands[place][2], entries)
            slices.append(Slice(logits, entries, self.vocab_axes))
        return slices


def _sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _are_names(x) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)


def finished(readout, logits: jax.Array, bias: jax.Array | None, entries: jax.Array) -> jax.Array:
    """Logits [..., V] of the `entries` [V] with their bias [V] on, those that only pad the
    vocabulary masked.
    """
    ones = (1,) * (logits.ndim - 1)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32).reshape(*ones, -1)
    if readout.vocab == readout.width:
        return logits
    return jnp.where((entries < readout.vocab).reshape(*ones, -1), logits, _MASKED)


def split(tree, chunks: int):
    """Arrays [B, L, ...] to [chunks, B, L / chunks, ...]. Chunk i holds positions i, i + chunks,
    ...: with the length split over devices, every device works in every chunk.
    """

    def one(x):
        batch, length, *rest = x.shape
        return jnp.moveaxis(x.reshape(batch, length // chunks, chunks, *rest), 2, 0)

    return jax.tree.map(one, tree)


def join(tree):
    """The inverse of `split`."""

    def one(x):
        chunks, batch, length, *rest = x.shape
        return jnp.moveaxis(x, 0, 2).reshape(batch, length * chunks, *rest)

    return jax.tree.map(one, tree)
