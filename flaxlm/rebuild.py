"""A module from the JSON that `overrides.to_json` makes of it, without executing what was read.

A run directory or a file from elsewhere names classes and functions. Only those are looked up that
flaxlm itself defines in `models/`, `nn/` and `objectives/`: dataclasses, which a Linen module is,
and functions.
"""

import dataclasses
import importlib
import importlib.util
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from flaxlm import leaves
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives.base import Objective

_PACKAGES = ("flaxlm.models.", "flaxlm.nn.", "flaxlm.objectives.")


def rebuild(value: Mapping, *, where: str) -> nn.Module:
    """The module that `value` describes, {"class": "flaxlm.models.NAME.CLASS", ...}.

    A field that the description lacks, because it is older than the field, has its default.

    Args:
      where: the description's place, for messages.

    Raises:
      ConfigError: the class is not one of flaxlm's models; give the model itself.
      DataError: the description does not fit its classes.
    """
    return _rebuilt(value, nn.Module, "a model", where)


def rebuild_objective(value: Mapping, *, where: str) -> Objective:
    """The objective that `value` describes; arguments and errors as those of `rebuild`."""
    return _rebuilt(value, Objective, "an objective", where)


def _rebuilt(value, kind: type, name: str, where: str):
    built = _build(value, kind, where)
    if not isinstance(built, kind):
        raise DataError(f"{where} does not describe {name}")
    return built


def _build(value, annotation: Any, where: str):
    if isinstance(value, dict) and "class" in value:
        return _instance(value, where)
    if isinstance(value, dict):
        inner = (typing.get_args(annotation) or (Any, Any))[1]
        return {name: _build(item, inner, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        inner = [a for a in typing.get_args(annotation) if a is not Ellipsis] or [Any]
        kinds = inner if len(inner) == len(value) else inner[:1] * len(value)
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(_build(item, kind, f"{where}.{i}") for i, (item, kind) in pairs)
    if isinstance(value, str):
        kinds = _options(annotation)
        if float in kinds and value in ("inf", "-inf"):
            return float(value)
        functions = [k for k in kinds if k is Callable or typing.get_origin(k) is Callable]
        if functions and str not in kinds:
            return _named(value, types.FunctionType, where)
    return value


def _options(annotation: Any) -> tuple:
    """The alternatives of a union, each as itself; anything else alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _instance(value: Mapping, where: str):
    kind = _named(value["class"], type, where)
    if not dataclasses.is_dataclass(kind):
        raise DataError(f"{where}: {value['class']} is not a dataclass")
    hidden = ("parent", "name") if issubclass(kind, nn.Module) else ()
    fields = {f.name for f in dataclasses.fields(kind) if f.init and f.name not in hidden}
    given = {name: item for name, item in value.items() if name != "class"}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise DataError(f"{where}: {value['class']} has no field {unknown[0]!r}")
    hints = typing.get_type_hints(kind)
    built = {n: _build(item, hints[n], f"{where}.{n}") for n, item in given.items()}
    for name, item in built.items():
        if not leaves.fits(item, hints[name]):
            text = f"{str(item)[:80]!r}, expected {leaves.type_name(hints[name])}"
            raise DataError(f"{where}.{name} is {text}")
    try:
        return kind(**built)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: {value['class']} cannot be made: {reason}") from error


def _named(name, kind: type, where: str):
    """The class or function of a dotted name, if flaxlm's models or parts define it."""
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module.startswith(_PACKAGES) or not all(map(str.isidentifier, name.split("."))):
        raise ConfigError(
            f"{where} names {name!r}, which is not part of flaxlm's models or objectives: what a "
            f"file names is not executed; give the module itself, load(PATH, model=...)"
        )
    try:
        known = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        known = False
    found = getattr(importlib.import_module(module), attribute, None) if known else None
    if not isinstance(found, kind) or found.__module__ != module:
        raise DataError(f"{where}: flaxlm has no {name}")
    return found
