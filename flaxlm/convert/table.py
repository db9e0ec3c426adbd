"""One table per family, read in both directions: our parameters and Hugging Face's tensors.

A converter is a module `convert/<family>.py` with

  MODEL_TYPES           names in config.json's "model_type" that it reads
  model_of(config)      a module of ours for a config.json (a dict), in its published form
  config_of(model)      the config.json of a module, "model_type" and "architectures" included
  table(model)          the entries of all its parameters
  ALIASES               {their name: their name}: tensors that some files carry a second time or under
                        another name; `read` takes whichever is there
  IGNORED               regular expressions of tensors that carry nothing a model of ours has

numpy in, numpy out; nothing here knows of devices or files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm.errors import DataError, MissingInput
from flaxlm.nn.embed import padded


@dataclass(frozen=True)
class Entry:
    """One parameter of ours and the tensor, or part of a tensor, that it is.

    Attributes:
      ours: path, "a/b/kernel".
      theirs: name; "{}" stands for the layer number if the parameter is stacked over `layers`.
      shape: of one layer, in our order, without the padding of the vocabulary.
      layers: number of stacked layers; 0: not stacked.
      transposed: their matrix is [out, in] (torch's Linear); never true of what is not a matrix.
      vocab_dim: the dim of ours that is padded to a multiple.
      part: (i, n): the tensor holds n parameters side by side along their dim `part_dim`, this is
        the i-th (GPT-2's joint projection).
      part_dim: see `part`.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    layers: int = 0
    transposed: bool = False
    vocab_dim: int | None = None
    part: tuple[int, int] = (0, 1)
    part_dim: int = -1

    def names(self) -> list[str]:
        return [self.theirs.format(layer) for layer in range(self.layers or 1)]

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of the whole tensor of one layer."""
        shape = list(self.shape[::-1] if self.transposed else self.shape)
        shape[self.part_dim] *= self.part[1]
        return tuple(shape)


def linear(
    ours: str,
    theirs: str,
    shape: tuple[int, int],
    *,
    kernel: str = "kernel",
    layers: int = 0,
    **more,
) -> list[Entry]:
    """A torch Linear with a bias: kernel `ours`/`kernel` [in, out] and bias `ours`/`kernel`_bias."""
    return [
        Entry(f"{ours}/{kernel}", f"{theirs}.weight", shape, layers, transposed=True, **more),
        Entry(f"{ours}/{kernel}_bias", f"{theirs}.bias", shape[1:], layers),
    ]


def layer_norm(ours: str, theirs: str, width: int, *, layers: int = 0) -> list[Entry]:
    """A torch LayerNorm."""
    return [
        Entry(f"{ours}/scale", f"{theirs}.weight", (width,), layers),
        Entry(f"{ours}/bias", f"{theirs}.bias", (width,), layers),
    ]


def read(
    entries: Sequence[Entry],
    tensors: Mapping[str, np.ndarray],
    *,
    ignored: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> dict:
    """The parameter tree that `tensors` hold, fp32; padding rows of the vocabulary are zeros.

    Args:
      ignored: regular expressions of names to pass over.
      aliases: {name in a file: name in the table}; used where the table's name is not there.

    Raises:
      MissingInput: a tensor is missing, with the shape it should have.
      DataError: a tensor has another shape, or belongs to no parameter.
    """
    known = {name for entry in entries for name in entry.names()}
    renamed = {(aliases or {}).get(name, name): name for name in tensors if name not in known}
    found = {name: name for name in tensors if name in known}
    sources = {**{new: old for new, old in renamed.items() if new in known}, **found}
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    used = {*sources.values(), *(aliases or {})}
    unknown = sorted(name for name in tensors if name not in used and not skip.fullmatch(name))
    if unknown:
        shape = list(tensors[unknown[0]].shape)
        raise DataError(
            f"{len(unknown)} tensors have no place in this model, first {unknown[0]!r} {shape}"
        )
    return unflatten_dict({e.ours: _ours(e, tensors, sources) for e in entries}, sep="/")


def _ours(entry: Entry, tensors, sources) -> np.ndarray:
    layers = []
    for name in entry.names():
        if name not in sources:
            raise MissingInput(
                f"tensor {name!r} {list(entry.their_shape)} is missing; {entry.ours} "
                f"{list(entry.shape)} is made of it"
            )
        array = np.asarray(tensors[sources[name]], np.float32)
        if array.shape != entry.their_shape:
            raise DataError(
                f"tensor {sources[name]!r} has shape {list(array.shape)}; for {entry.ours} "
                f"{list(entry.shape)} it must have {list(entry.their_shape)}"
            )
        index, count = entry.part
        array = np.split(array, count, axis=entry.part_dim)[index]
        layers.append(array.T if entry.transposed else array)
    if entry.vocab_dim is not None:
        pad = [(0, 0)] * len(entry.shape)
        vocab = entry.shape[entry.vocab_dim]
        pad[entry.vocab_dim] = (0, padded(vocab) - vocab)
        layers = [np.pad(array, pad) for array in layers]
    return np.stack(layers) if entry.layers else np.ascontiguousarray(layers[0])


def write(entries: Sequence[Entry], params: Mapping) -> dict[str, np.ndarray]:
    """The tensors of a parameter tree, fp32: the inverse of `read`.

    Raises:
      MissingInput: the tree lacks a parameter.
      DataError: a parameter has another shape, or has no place in the table.
    """
    flat = flatten_dict(params, sep="/")
    rest = sorted(set(flat) - {entry.ours for entry in entries})
    if rest:
        raise DataError(f"{len(rest)} parameters have no place in the table, first {rest[0]!r}")
    parts: dict[str, list] = {}
    for entry in entries:
        if entry.ours not in flat:
            raise MissingInput(f"parameter {entry.ours} {list(entry.shape)} is missing")
        array = np.asarray(flat[entry.ours], np.float32)
        shape = list(entry.shape)
        if entry.vocab_dim is not None:
            shape[entry.vocab_dim] = padded(shape[entry.vocab_dim])
        whole = ([entry.layers] if entry.layers else []) + shape
        if list(array.shape) != whole:
            raise DataError(f"parameter {entry.ours} has shape {list(array.shape)}, not {whole}")
        for name, layer in zip(entry.names(), array if entry.layers else [array], strict=True):
            if entry.vocab_dim is not None:
                layer = layer.take(range(entry.shape[entry.vocab_dim]), axis=entry.vocab_dim)
            layer = layer.T if entry.transposed else layer
            parts.setdefault(name, [None] * entry.part[1])[entry.part[0]] = (layer, entry.part_dim)
    return {
        name: np.ascontiguousarray(np.concatenate([a for a, _ in pieces], axis=pieces[0][1]))
        if len(pieces) > 1
        else np.ascontiguousarray(pieces[0][0])
        for name, pieces in parts.items()
    }
