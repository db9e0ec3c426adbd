"""An experiment as a tree of values: replace one, print all, write as JSON, compare two.

Inner nodes are dataclasses (a Linen module is one), mappings, and tuples of those; leaves are
numbers, strings and tuples of them. A path is field names joined by dots, items of tuples go by
number: `model.size.depth`, `data.sources.0.uri`.
"""

import dataclasses
import fnmatch
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from flaxlm import leaves
from flaxlm.arguments import Arguments
from flaxlm.errors import ConfigError, UserError, nearest
from flaxlm.experiment import Experiment, Loaded, load

Overrides = tuple[tuple[str, str], ...]

# What may change when a run directory is continued: how long, how often, on what. All else is the
# run's identity.
RESUMABLE = (
    "run.steps",
    "run.log_every",
    "run.eval_*",
    "run.save_every",
    "run.keep*",
    "run.patience",
    "run.divergence.*",
    "run.directory",
    "run.accumulate",
    "mesh.*",
    "model.compute.*",
    "model.encoder.compute.*",
)

_ROWS = 12  # differing fields shown

ABSENT = "(absent)"  # the value of a path that one of two experiments does not have


def resolve(arguments: Arguments) -> Loaded:
    """The experiment that a command line asks for, overrides applied. Touches no device.

    Raises:
      ConfigError: see `load` and `apply_overrides`; or a value of the file is of a wrong type.
    """
    loaded = load(arguments.experiment)
    _check_types(loaded)
    experiment = apply_overrides(loaded.experiment, arguments.overrides)
    return dataclasses.replace(loaded, experiment=experiment)


def apply_overrides(experiment: Experiment, overrides: Overrides) -> Experiment:
    """`experiment` with the named leaves replaced, each text read as its field's annotation says.

    Raises:
      ConfigError: unknown field (naming near ones), no leaf, given twice, or of another type.
    """
    texts: dict[tuple[str, ...], str] = {}
    for path, text in overrides:
        key = tuple(path.split("."))
        if key in texts:
            raise ConfigError(f"--{path} is given twice: {texts[key]!r} and {text!r}")
        texts[key] = text
    return _replace(experiment, Experiment, (), texts) if texts else experiment


def describe(experiment: Experiment, overrides: Overrides = ()) -> str:
    """Every leaf, its value and its origin, "experiment" or "command line".

    A class that the annotation leaves open (of the model, the schedule, ...) is in brackets.
    """
    given = {path for path, _ in overrides}
    rows = [("name", "value", "from")]
    for path, node, annotation, is_leaf in _walk(experiment, Experiment, ()):
        name = ".".join(path)
        if is_leaf:
            origin = "command line" if name in given else "experiment"
            rows.append((name, leaves.write(node) or repr(node), origin))
        elif dataclasses.is_dataclass(node) and type(node) is not annotation:
            rows.append((name, f"[{_class(node)}]", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def to_json(experiment: Experiment | nn.Module) -> dict:
    """The experiment, or its model, as JSON values; a dataclass is {"class": ..., ...}."""
    return _encode(experiment, ())


def diff(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """[(path, old, new)] of the leaves in which two `to_json` results differ; or `ABSENT`."""
    old_leaves, new_leaves = flatten(old), flatten(new)
    paths = list(old_leaves) + [path for path in new_leaves if path not in old_leaves]
    pairs = [(path, old_leaves.get(path, ABSENT), new_leaves.get(path, ABSENT)) for path in paths]
    return [
        (path, a, b) for path, a, b in pairs if a != b or (type(a) is bool) != (type(b) is bool)
    ]


def check_same_run(old: dict, new: dict, *, directory: Path | str) -> list[tuple[str, Any, Any]]:
    """Refuse to continue a run of the experiment `old` as `new`, or return what differs.

    Raises:
      ConfigError: with a table of the fields that differ and may not.
    """
    changes = diff(old, new)
    bad = [c for c in changes if not any(fnmatch.fnmatchcase(c[0], free) for free in RESUMABLE)]
    if bad:
        # What was saved may have been altered: it must not break the lines of the table.
        rows = [(_short(path)[1:-1], _short(a), _short(b)) for path, a, b in bad[:_ROWS]]
        width = max(len(path) for path, _, _ in rows)
        table = [f"{path:<{width}}  saved {a}, now {b}" for path, a, b in rows]
        if len(bad) > _ROWS:
            table.append(f"and {len(bad) - _ROWS} more")
        raise ConfigError(
            f"{directory} holds another experiment ({len(bad)} fields differ); give the old values "
            "back, or choose another --run.directory:\n  " + "\n  ".join(table)
        )
    return changes


def misfits(tree: Any, annotation: Any) -> Iterator[str]:
    """ "a.b is 'x' (str), expected int" of every value of `tree` that is not what is annotated."""
    for path, node, wanted, _ in _walk(tree, annotation, ()):
        if not leaves.fits(node, wanted):
            found = f"{_short(node)} ({type(node).__name__})"
            yield f"{'.'.join(path)} is {found}, expected {leaves.type_name(wanted)}"


def _check_types(loaded: Loaded) -> None:
    """Refuse a file in which a value is of another type than its field declares."""
    try:
        for text in misfits(loaded.experiment, Experiment):
            raise ConfigError(f"{loaded.path}: {text}")
        to_json(loaded.experiment)
    except RecursionError:
        raise ConfigError(f"{loaded.path}: the experiment contains itself") from None


def _children(node: Any, annotation: Any) -> dict[str, tuple[Any, Any]] | None:
    """{name: (value, annotation)} of an inner node, None for a leaf."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = typing.get_type_hints(type(node))
        hidden = ("parent", "name") if isinstance(node, nn.Module) else ()
        fields = [f.name for f in dataclasses.fields(node) if f.init and f.name not in hidden]
        return {name: (getattr(node, name), hints[name]) for name in fields}
    if isinstance(node, Mapping):
        arguments = typing.get_args(annotation)
        inner = arguments[1] if len(arguments) == 2 else Any
        return {name: (value, inner) for name, value in node.items()}
    if isinstance(node, tuple) and any(_children(item, Any) is not None for item in node):
        inner = (typing.get_args(annotation) or (Any,))[0]
        return {str(index): (item, inner) for index, item in enumerate(node)}
    return None


def _walk(node, annotation, path):
    """(path, value, annotation, is leaf) of `node` and all nodes below it, in order."""
    children = _children(node, annotation)
    yield path, node, annotation, children is None
    for name, (child, inner) in (children or {}).items():
        yield from _walk(child, inner, (*path, name))


def _replace(node, annotation, path: tuple[str, ...], texts: dict[tuple[str, ...], str]):
    """`node` with leaves replaced: {path below node: text}."""
    children = _children(node, annotation)
    option = "--" + ".".join(path)
    if children is None:
        below = [key for key in texts if key]
        if below:
            value = f"a single value ({leaves.write(node)})"
            full = ".".join((option, *below[0]))
            raise ConfigError(f"{full}: {option[2:]} is {value}, it has no fields")
        try:
            return leaves.read(texts[()], annotation, node)
        except leaves.WrongType as error:
            example = f"{option}={leaves.write(node)}"
            raise ConfigError(f"{option}={texts[()]}: expected {error}, as in {example}") from None
    if () in texts:
        inside = ", ".join(f"{option}.{name}" for name in list(children)[:8])
        raise ConfigError(
            f"{option}={texts[()]}: {option[2:]} is a group of values; override one of {inside}"
        )
    changed = {}
    for name in dict.fromkeys(key[0] for key in texts):
        if name not in children:
            where = f"{'.'.join(path)} ({type(node).__name__})" if path else "the experiment"
            full = ".".join((*path, name))
            if isinstance(getattr(type(node), name, None), property | functools.cached_property):
                raise ConfigError(
                    f"--{full}: {name} follows from other values of {where}, override those: "
                    + ", ".join(list(children)[:8])
                )
            raise ConfigError(f"--{full}: {where} has no field {name!r}; {nearest(name, children)}")
        value, inner = children[name]
        below = {key[1:]: text for key, text in texts.items() if key[0] == name}
        changed[name] = _replace(value, inner, (*path, name), below)
    try:
        return _rebuilt(node, changed)
    except UserError:
        raise
    except Exception as error:  # a dataclass that checks its fields
        given = " ".join(f"--{'.'.join((*path, *key))}={text}" for key, text in texts.items())
        raise ConfigError(f"{given}: {' '.join(str(error).split())}") from error


def _rebuilt(node, changed: dict[str, Any]):
    if isinstance(node, nn.Module):
        return node.clone(**changed)
    if isinstance(node, Mapping):
        return {**node, **changed}
    if isinstance(node, tuple):
        return tuple(changed.get(str(index), item) for index, item in enumerate(node))
    return dataclasses.replace(node, **changed)


def _short(value) -> str:
    """`repr` on one line of at most 80 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a class of the file's own; or an integer of too many digits
        text = "(cannot be printed)"
    return text if len(text) <= 80 else text[:77] + "..."


def _class(value) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _encode(value, path: tuple[str, ...]):
    """A value as JSON values; JSON has no infinity, so it is the string "inf" or "-inf"."""
    children = _children(value, Any)
    if isinstance(value, tuple):
        return [_encode(item, (*path, str(index))) for index, item in enumerate(value)]
    if children is not None:
        inside = {name: _encode(child, (*path, name)) for name, (child, _) in children.items()}
        if isinstance(value, Mapping):
            return inside
        return {"class": _class(value), **inside}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise ConfigError(
        f"experiment.{'.'.join(path)} is a {type(value).__name__}: an experiment is made of frozen "
        "dataclasses, mappings, tuples, numbers, strings and named functions"
    )


def flatten(tree, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """{"a.b.0": leaf}. A list of scalars is one leaf; so are an empty list and an empty object."""
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        items = enumerate(tree)
    else:
        return {".".join(path): tree}
    flat = {}
    for name, child in items:
        flat |= flatten(child, (*path, str(name)))
    return flat
