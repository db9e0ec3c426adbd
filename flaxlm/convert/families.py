"""The converters there are, found by listing this package, and the one a folder or a model needs.

A family is a module `convert/<family>.py` of the form that `convert/table.py` describes.
"""

import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import flax.linen as nn

from flaxlm import convert
from flaxlm.errors import ConfigError, DataError, MissingInput, UserError
from flaxlm.overrides import misfits

CONFIG = "config.json"


@functools.cache
def families() -> dict[str, ModuleType]:
    """{name: module} of all converters."""
    names = [module.name for module in pkgutil.iter_modules(convert.__path__)]
    modules = {n: importlib.import_module(f"flaxlm.convert.{n}") for n in names if n[0] != "_"}
    return {name: module for name, module in modules.items() if hasattr(module, "MODEL_TYPES")}


def family_of_config(config: Mapping, *, where: str) -> ModuleType:
    """The converter that reads a config.json.

    Args:
      where: its path, for messages.

    Raises:
      ConfigError: no converter reads its "model_type", naming those that are known.
    """
    known = {kind: module for module in families().values() for kind in module.MODEL_TYPES}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"{where}: model_type {kind!r} is not known: {', '.join(sorted(known))}")
    return known[kind]


def family_of_model(model: nn.Module) -> ModuleType:
    """The converter of a model: the module of the same name as the model's own.

    Raises:
      ConfigError: none does.
    """
    module = type(model).__module__
    name = module.rpartition(".")[2]
    if module != f"flaxlm.models.{name}" or name not in families():
        known = ", ".join(sorted(families()))
        raise ConfigError(f"{module}.{type(model).__name__} has no converter; there are {known}")
    return families()[name]


def parts_of(model: nn.Module, params: Mapping) -> dict[str, tuple[nn.Module, Mapping]]:
    """{name: (module, parameters)} of what transformers has of a model: {"": itself} for most.

    Raises:
      ConfigError: see `family_of_model`.
    """
    family = family_of_model(model)
    parts = family.parts(model, params) if hasattr(family, "parts") else {}
    return parts or {"": (model, params)}


def model_of(config: Mapping, *, where: str) -> nn.Module:
    """The model of a config.json.

    Raises:
      ConfigError: see `family_of_config`; or a field has a value that no model of ours has.
      DataError: a field is missing or of a wrong type.
    """
    family = family_of_config(config, where=where)
    named = config.get("architectures")
    if named is not None and not (named and isinstance(named, list) and isinstance(named[0], str)):
        raise DataError(f"{where}: architectures is {str(named)[:80]!r}, not a list of names")
    try:
        model = family.model_of(config)
        for text in misfits(model, type(model)):
            raise DataError(text)
        return model
    except KeyError as error:
        raise DataError(f"{where}: {error.args[0]!r} is missing") from error
    except UserError as error:
        raise type(error)(f"{where}: {str(error).removeprefix(CONFIG + ': ')}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{where}: a field is of a wrong type ({error})") from error


def read_config(folder: Path) -> dict:
    """config.json of a folder.

    Raises:
      MissingInput: there is none.
      DataError: it is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is not a JSON object")
    return config
