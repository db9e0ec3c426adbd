"""A Hugging Face folder: model and parameters out of it, and into it. No torch is needed."""

import json
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np

from flaxlm import safetensors
from flaxlm.convert import table
from flaxlm.convert.families import CONFIG, family_of_model, model_of, read_config
from flaxlm.data.files import write_whole
from flaxlm.data.vocab_base import Vocab
from flaxlm.errors import DataError, MissingInput, Refused, UserError

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")


def read_folder(folder: Path) -> tuple[nn.Module, dict]:
    """The model of config.json, and its parameters out of the safetensors.

    Raises:
      MissingInput: a file or a tensor is missing.
      DataError: a tensor has another shape than config.json says or no place in the model.
      Refused: the weights are pickled, saying what to do instead.
      ConfigError: the model is of no known family, or has a part that no model of ours has.
    """
    config = read_config(folder)
    model = model_of(config, where=str(folder / CONFIG))
    _refuse_pickled(folder, config)
    return model, params_of(folder, model, safetensors.read_folder(folder))


def params_of(folder: Path, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict:
    """The parameter tree that tensors by Hugging Face names hold; raises as `read_folder`."""
    family = family_of_model(model)
    try:
        return table.read(
            family.table(model),
            tensors,
            ignored=family.IGNORED,
            zeros=getattr(family, "ZEROS", ()),
            aliases=family.ALIASES,
            prefix=family.PREFIX,
        )
    except UserError as error:
        raise type(error)(f"{folder}: {error}") from error


def write_folder(folder: Path, model: nn.Module, params: Mapping, vocab: Vocab | None) -> None:
    """Write config.json and model.safetensors.

    Args:
      vocab: whose special ids config.json names; None: those of the published vocabulary.

    Raises:
      ConfigError: transformers has no class for this model.
      DataError: config.json would not say all that the model is.
      StorageError: the folder cannot be written.
    """
    family = family_of_model(model)
    config = {**family.config_of(model), "dtype": "float32"}
    for name in ("pad", "bos", "eos"):
        at = getattr(vocab, name) if vocab is not None else None
        if at is not None:
            config[f"{name}_token_id"] = at
    start = family.TOKENIZER.start
    if vocab is not None and start:
        vocab.require(start)
        config["decoder_start_token_id"] = getattr(vocab, start)
    back = model_of(config, where=CONFIG)
    if family.table(back) != family.table(model):
        raise DataError(f"{CONFIG} would be read as {back.size}, the model is {model.size}")
    safetensors.write(folder / safetensors.NAME, table.write(family.table(model), params))
    write_whole(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _refuse_pickled(folder: Path, config: Mapping) -> None:
    if (folder / safetensors.NAME).exists() or (folder / safetensors.INDEX).exists():
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if not pickled:
        raise MissingInput(f"{folder} has no {safetensors.NAME}")
    names = config.get("architectures") or ["AutoModel"]
    raise Refused(
        f"{folder / pickled[0]} is not read: such files can run code. Where torch is installed: "
        f"transformers.{names[0]}.from_pretrained({str(folder)!r}).save_pretrained(NEW, "
        f"safe_serialization=True), then convert NEW"
    )
