"""One table per family, read in both directions: our parameters and Hugging Face's tensors.

A converter is a module `convert/<family>.py` with

  MODEL_TYPES           names in config.json's "model_type" that it reads
  model_of(config)      a module of ours for a config.json (a dict), in its published form
  config_of(model)      the config.json of a module, "model_type" and "architectures" included
  table(model)          the entries of all its parameters
  ALIASES               {their name: their name}: tensors that some files carry a second time or
                        under another name; `read` takes whichever is there
  PREFIX                what the names in a file of the bare model (without heads) lack, "bert."; ""
  IGNORED               regular expressions of tensors that carry nothing a model of ours has
  TOKENIZER             a `convert.tokenizer.Template`: what its tokenizer puts around a text

and, where the family needs them,

  ZEROS                 regular expressions of tensors that may hold zeros alone
  parts(model, params)  {name: (module, parameters)} of a model that transformers has in parts, or
                        without something, alone; {} for one that it has as it is

numpy in, numpy out; nothing here knows of devices or files.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm.errors import ConfigError, DataError, MissingInput
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
      folded: their shape, where their tensor is the (then transposed) matrix with one of its dims
        folded in two, such as heads and channels; (): it is not.
      plus: name of a tensor [1, ...] that theirs is used together with and that we have no
        parameter for: reading adds it to every row, writing writes zeros (a table of one token
        type). "": none.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    layers: int = 0
    transposed: bool = False
    vocab_dim: int | None = None
    part: tuple[int, int] = (0, 1)
    part_dim: int = -1
    folded: tuple[int, ...] = ()
    plus: str = ""

    def names(self) -> list[str]:
        return [self.theirs.format(layer) for layer in range(self.layers or 1)]

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of the whole tensor of one layer."""
        return self.folded or self.unfolded

    @property
    def unfolded(self) -> tuple[int, ...]:
        """As `their_shape`, with no dim folded."""
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
    """A torch Linear: `ours`/`kernel` [in, out] and its bias `ours`/`kernel`_bias."""
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


def option(config: Mapping, defaults: Mapping[str, Any]) -> Callable[[str], Any]:
    """`get(name)` of a config.json: its value, or else that of `defaults`, which lists all fields
    that are read and what transformers takes where a file does not name them.
    """
    given = {**defaults, **{name: config[name] for name in defaults if name in config}}
    return given.__getitem__


def refuse(get: Callable[[str], Any], accepted: Mapping[str, tuple]) -> None:
    """Check options that a model here has in some forms alone: {name: accepted values}.

    Raises:
      ConfigError: naming the first that has another value.
    """
    for name, values in accepted.items():
        if get(name) not in values:
            known = " or ".join(repr(value) for value in values)
            raise ConfigError(f"config.json: {name}={get(name)!r} is not supported; {known} is")


def read(
    entries: Sequence[Entry],
    tensors: Mapping[str, np.ndarray],
    *,
    ignored: Iterable[str] = (),
    zeros: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
    prefix: str = "",
) -> dict:
    """The parameter tree that `tensors` hold, fp32; padding rows of the vocabulary are zeros.

    Args:
      ignored: regular expressions of names to pass over.
      zeros: the same of names to pass over if all their values are 0.
      aliases: {name in a file: name in the table}; used where the table's name is not there, else
        both must hold the same.
      prefix: that names in a file may lack.

    Raises:
      MissingInput: a tensor is missing, with the shape it should have.
      DataError: a tensor has another shape, belongs to no parameter, or is no copy where it should
        be one.
    """
    for entry in entries:
        if entry.layers > len(tensors):  # before their names are made: a config.json may say 10^9
            raise MissingInput(
                f"{entry.ours} has {entry.layers} layers, there are {len(tensors)} tensors in all"
            )
    known = {name for entry in entries for name in entry.names()}
    known |= {entry.plus for entry in entries if entry.plus}
    empty = [n for n in tensors if any(re.fullmatch(pattern, n) for pattern in zeros)]
    for name in empty:
        if np.any(tensors[name]):
            raise DataError(f"tensor {name!r} must be 0, the model has no place for it; it is not")
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    sources = {name: name for name in tensors if name in known}
    unknown = []
    for name in sorted(set(tensors) - known - set(empty)):
        # An alias may be of a part that this model lacks; then so may what it stands for.
        for full in (name, prefix + name):
            full = (aliases or {}).get(full, full)
            if full in known or full in (aliases or {}).values():
                break
        else:
            if not skip.fullmatch(name):
                unknown.append(name)
            continue
        if full in sources:
            _check_copy(name, sources[full], tensors)
        elif full in known:
            sources[full] = name
    if unknown:
        shape = list(tensors[unknown[0]].shape)
        raise DataError(
            f"{len(unknown)} tensors have no place in this model, first {unknown[0]!r} {shape}"
        )
    return unflatten_dict({e.ours: _ours(e, tensors, sources) for e in entries}, sep="/")


def _check_copy(name: str, original: str, tensors) -> None:
    a, b = np.asarray(tensors[name]), np.asarray(tensors[original])
    if a.shape != b.shape or not np.array_equal(a, b):
        raise DataError(
            f"tensor {name!r} {list(a.shape)} must be a copy of {original!r} {list(b.shape)}, the "
            "model has one parameter for the two, and it is not"
        )


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
        array = np.split(array.reshape(entry.unfolded), count, axis=entry.part_dim)[index]
        if entry.plus:
            array = array + _added(entry, tensors, sources)
        layers.append(array.T if entry.transposed else array)
    if entry.vocab_dim is not None:
        pad = [(0, 0)] * len(entry.shape)
        vocab = entry.shape[entry.vocab_dim]
        pad[entry.vocab_dim] = (0, padded(vocab) - vocab)
        layers = [np.pad(array, pad) for array in layers]
    return np.stack(layers) if entry.layers else np.ascontiguousarray(layers[0])


def _added(entry: Entry, tensors, sources) -> np.ndarray:
    shape = (1, *entry.shape[1:])
    if entry.plus not in sources or tensors[sources[entry.plus]].shape != shape:
        raise MissingInput(
            f"tensor {entry.plus!r} {list(shape)} is missing or of another shape; {entry.ours} is "
            "made with it"
        )
    return np.asarray(tensors[sources[entry.plus]], np.float32)


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
            layer = layer.reshape(entry.folded or layer.shape)
            parts.setdefault(name, [None] * entry.part[1])[entry.part[0]] = (layer, entry.part_dim)
    zeros = {
        entry.plus: np.zeros((1, *entry.shape[1:]), np.float32) for entry in entries if entry.plus
    }
    return zeros | {
        name: np.ascontiguousarray(np.concatenate([a for a, _ in pieces], axis=pieces[0][1]))
        if len(pieces) > 1
        else np.ascontiguousarray(pieces[0][0])
        for name, pieces in parts.items()
    }
