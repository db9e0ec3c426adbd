"""Warm starts and frozen models: parameters that a run does not make itself.

`Experiment.start` replaces freshly initialised parameters before the first step; a run that goes on
from a checkpoint does not read it again. `Experiment.frozen` is read at every start. Whatever does
not fit is refused: a warm start that misses its target trains as well as a cold one, only worse.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from flaxlm.data.vocab_base import Vocab
from flaxlm.errors import ConfigError, MissingInput, UserError
from flaxlm.named import path_name
from flaxlm.plan import Plan
from flaxlm.step import State
from flaxlm.weights import Weights, hash_of, read_weights

Arrays = dict[str, np.ndarray]  # parameter path -> array
Axes = Mapping[str, tuple[str, ...]]
_SHOWN = 4  # names of parameters in one message


@dataclass(frozen=True)
class Restored:
    """Parameters read for one tree of parameters.

    Attributes:
      arrays: by our paths; smaller than ours where a vocabulary grows.
      sources: (weights, whether what is taken depends on the vocabulary), one per `Restore`.
      line: what was restored and what was not, for the banner.
    """

    arrays: Arrays
    sources: tuple[tuple[Weights, bool], ...]
    line: str

    def check_vocab(self, vocab: Vocab) -> None:
        """Refuse parameters that belong to another vocabulary than the run's.

        Raises:
          MissingInput: naming both.
        """
        for source, depends in self.sources:
            theirs = source.vocab
            if depends and theirs is not None and theirs.sha256 != vocab.sha256:
                raise MissingInput(
                    f"{source.path} has another vocabulary ({theirs.size} ids, "
                    f"{theirs.sha256[:12]}) than this run ({vocab.size} ids, {vocab.sha256[:12]}): "
                    f"set data.vocabulary.path={source.vocab_path}"
                )


@dataclass(frozen=True)
class Warm:
    """All that a run reads: see `read_warm`."""

    start: Restored | None = None
    frozen: Mapping[str, Restored] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """What was read, for the banner."""
        started = [f"warm start  {self.start.line}"] if self.start else []
        return started + [f"{name:>10}  {part.line}" for name, part in self.frozen.items()]

    @property
    def identity(self) -> dict:
        """Of the frozen parameters, for the checkpoints: {} or {"frozen": {name: sha256}}."""
        hashes = {name: hash_of(part.arrays) for name, part in self.frozen.items()}
        return {"frozen": hashes} if hashes else {}

    def check_vocab(self, vocab: Vocab) -> None:
        """See `Restored.check_vocab`."""
        for part in (*filter(None, [self.start]), *self.frozen.values()):
            part.check_vocab(vocab)

    def begin(self, state: State, plan: Plan) -> State:
        """A freshly made state with its parameters replaced; the optimizer begins from these."""
        if self.start is None:
            return state
        shardings = plan.state_shardings()
        params = _placed(state.params, self.start.arrays, shardings.params)
        learned, _ = plan.learns.split(params)
        opt = jax.jit(plan.tx.init, out_shardings=shardings.opt)(learned)
        return state.replace(params=params, opt=opt)

    def with_frozen(self, state: State, plan: Plan) -> State:
        """The state with its frozen parameters, laid out over the mesh."""
        shardings, abstract = plan.state_shardings().frozen, plan.state.frozen
        return state.replace(
            frozen={
                name: _placed(abstract[name], part.arrays, shardings[name])
                for name, part in self.frozen.items()
            }
        )


def read_warm(experiment, plan: Plan, *, resumes: bool) -> Warm:
    """Read what an experiment starts from and what it keeps frozen.

    Args:
      experiment: an `Experiment`.
      plan: of it.
      resumes: the run goes on from a checkpoint: `start` is not read again.

    Raises:
      MissingInput, DataError, StorageError: a source is not there or not usable.
      ConfigError: what it holds does not fit, naming both sides.
    """
    start = None
    if experiment.start and not resumes:
        start = restore(experiment.start, plan.shapes, plan.axes, where="start")
    frozen = {}
    for number, part in enumerate(experiment.frozen):
        where = f"frozen.{number}"
        if part.start.grow:
            raise ConfigError(f"{where} ({part.name}): grow leaves rows that nobody would train")
        leaves = jax.tree_util.tree_leaves_with_path(plan.state.frozen[part.name])
        shapes = {path_name(path): leaf.shape for path, leaf in leaves}
        found = restore((part.start,), shapes, plan.frozen_axes[part.name], where=where)
        missing = sorted(set(shapes) - set(found.arrays))
        if missing:
            raise ConfigError(
                f"{where} ({part.name}): {part.start.path} has no {_some(missing)}; a frozen model "
                f"must be restored whole"
            )
        if not part.start.take:
            _check_choices(part, found.sources[0][0].model, where)
        frozen[part.name] = found
    return Warm(start, frozen)


def _check_choices(part, saved, where: str) -> None:
    """Refuse a frozen model whose choices in code (activation, positions, ...) are not those of the
    model its parameters were trained in: shapes would not tell.
    """
    declared = {f.name for f in dataclasses.fields(saved)} - {"size", "compute", "name", "parent"}
    for name in sorted(declared & {f.name for f in dataclasses.fields(part.model)}):
        here, there = getattr(part.model, name), getattr(saved, name)
        if repr(here) != repr(there):
            shown = [getattr(value, "__name__", value) for value in (here, there)]
            raise ConfigError(
                f"{where} ({part.name}): model.{name} is {shown[0]} here and {shown[1]} in "
                f"{part.start.path}"
            )


def restore(
    parts: Sequence, shapes: Mapping[str, tuple[int, ...]], axes: Axes, *, where: str
) -> Restored:
    """Read `Restore`s, in order, for a tree of parameters.

    Args:
      shapes: {parameter path: shape} of the tree.
      axes: {parameter path: dim names} of it.
      where: their place in the experiment.

    Raises:
      see `read_warm`.
    """
    arrays, sources, texts = {}, [], []
    for number, part in enumerate(parts):
        here = f"{where}.{number}" if len(parts) > 1 else where
        try:
            weights = read_weights(part.path)
        except UserError as error:
            raise type(error)(f"{here}: {error}") from error
        taken = _taken(part, weights, shapes, axes, here)
        arrays |= taken
        sources.append((weights, any("vocab" in axes[path] for path in taken)))
        what = f"{part.path}" + (f" at step {weights.step}" if weights.step else "")
        inside = (
            f" {part.take or '(all)'} as {part.into or '(all)'}"
            if part.take != part.into
            else (f" {part.take}" if part.take else "")
        )
        layers = f" layers {','.join(map(str, part.layers))}" if part.layers else ""
        grown = f", {weights.model.size.vocab} ids of the vocabulary" if part.grow else ""
        texts.append(f"{what}{inside}{layers}: {len(taken)} parameters{grown}")
    rest = sorted(set(shapes) - set(arrays))
    texts.append(f"{len(rest)} stay initialised" + (f": {_some(rest)}" if rest else ""))
    return Restored(arrays, tuple(sources), "; ".join(texts))


def _taken(part, weights: Weights, shapes, axes: Axes, where: str) -> Arrays:
    """What one `Restore` gives, by our paths."""
    left = {path for name in part.without for path in _paths_below(weights.flat, name)}
    theirs = _below({p: x for p, x in weights.flat.items() if p not in left}, part.take)
    if not theirs:
        tops = sorted(weights.params)
        raise ConfigError(
            f"{where}: {part.path} has no parameters {part.take!r}; there are {', '.join(tops)}"
        )
    if not _below(shapes, part.into):
        tops = sorted({path.partition("/")[0] for path in shapes})
        raise ConfigError(f"{where}: no parameters {part.into!r} here; there are {', '.join(tops)}")
    ours = {"/".join(filter(None, (part.into, rest))): array for rest, array in theirs.items()}
    unknown = sorted(set(ours) - set(shapes))
    if unknown:
        raise ConfigError(
            f"{where}: {part.path} has {_some(unknown)}, which the model lacks; name the part to "
            f"take (take=, into=), or what to leave out (without=)"
        )
    if part.layers and not any(axes[path][:1] == ("layers",) for path in ours):
        raise ConfigError(f"{where}: layers={part.layers}, and nothing that is taken has layers")
    if part.grow:
        ours = {p: _known(x, axes[p], weights.model.size.vocab) for p, x in ours.items()}
    return {p: _fitting(part, p, x, shapes[p], axes[p], where) for p, x in ours.items()}


def _known(array: np.ndarray, names, vocab: int) -> np.ndarray:
    """What an array holds of ids below `vocab`, without the padding behind them."""
    return array.take(range(vocab), axis=names.index("vocab")) if "vocab" in names else array


def _grows(theirs, ours, names) -> bool:
    """Whether an array is one of ours but for ids that it lacks."""
    return len(theirs) == len(ours) and all(
        a <= b if name == "vocab" else a == b
        for a, b, name in zip(theirs, ours, names, strict=True)
    )


def _fitting(part, path: str, array: np.ndarray, shape, names, where: str) -> np.ndarray:
    if part.layers and names[:1] == ("layers",):
        if not all(0 <= layer < len(array) for layer in part.layers):
            raise ConfigError(
                f"{where}: layers={part.layers}, and {part.path} has layers 0 to {len(array) - 1}"
            )
        array = array[list(part.layers)]
    if part.grow and _grows(array.shape, shape, names):
        return array
    if array.shape != tuple(shape):
        raise ConfigError(
            f"{where}: {path} is {list(array.shape)} in {part.path} and {list(shape)} here"
            + ("; layers=(...) chooses layers" if array.shape[1:] == tuple(shape[1:]) else "")
        )
    return array


def _below(flat: Mapping, path: str) -> dict:
    """{rest of the path: value} of what lies at or below `path`; "" is everything."""
    if path in flat:
        return {"": flat[path]}
    start = f"{path}/" if path else ""
    return {name[len(start) :]: value for name, value in flat.items() if name.startswith(start)}


def _paths_below(flat: Mapping, path: str) -> set[str]:
    return {name for name in flat if name == path or name.startswith(f"{path}/")}


def _placed(tree, arrays: Arrays, shardings):
    """`tree` with the leaves that `arrays` names replaced, each device reading its part."""

    def place(path, leaf, sharding):
        array = arrays.get(path_name(path))
        if array is None:
            return leaf
        if array.shape != leaf.shape:  # a vocabulary that grows: the rows behind theirs stay
            origin = (0,) * array.ndim
            put = partial(jax.lax.dynamic_update_slice, start_indices=origin)
            return jax.jit(put, out_shardings=sharding)(leaf, array.astype(leaf.dtype))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(place, tree, shardings)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
