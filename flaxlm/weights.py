"""Where parameters come from: a run, trained or made by `flaxlm.convert`, or a Hugging Face folder.

All three are verified as they are read, and none is changed. A converted run is

  MANIFEST.json         sizes and checksums of the others
  model.json            the module, as `overrides.to_json` writes one
  params.safetensors    parameters by our names, in our layout
  vocab.model           the vocabulary, where there was one

and a training run keeps its vocabulary under that name, too.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm import manifest, safetensors
from flaxlm.checkpoint import quiet
from flaxlm.convert.families import family_of_model
from flaxlm.convert.folder import read_folder
from flaxlm.convert.tokenizer import has_vocab, sentinels_of
from flaxlm.data.files import write_whole
from flaxlm.data.vocab import load_vocab
from flaxlm.data.vocab_base import Vocab
from flaxlm.errors import DataError, MissingInput, StorageError, UserError
from flaxlm.lora import DELTAS, LoRA
from flaxlm.named import path_name
from flaxlm.overrides import to_json
from flaxlm.rebuild import rebuild
from flaxlm.retention import Retention, Saved
from flaxlm.rundir import write_json

log = logging.getLogger(__name__)

MODEL, PARAMS, VOCAB = "model.json", "params.safetensors", "vocab.model"


@dataclass(frozen=True)
class Weights:
    """A model with its parameters.

    Attributes:
      path: the folder they were read from.
      model: its module.
      params: the tree, fp32 numpy arrays.
      vocab_path: file or folder of its vocabulary; None where it came without one.
      sentinels: above the pieces of the vocabulary.
      step: steps it was trained here; 0 if converted.
    """

    path: Path
    model: nn.Module
    params: dict[str, Any]
    vocab_path: Path | None
    sentinels: int
    step: int = 0

    @cached_property
    def vocab(self) -> Vocab | None:
        """The vocabulary.

        Raises:
          MissingInput, DataError: see `load_vocab`.
        """
        if self.vocab_path is None:
            return None
        try:
            return load_vocab(self.vocab_path, sentinels=self.sentinels)
        except UserError as error:
            if self.vocab_path != self.path:
                raise
            # A folder of another program's: the model is of use without its tokenizer.
            log.warning("%s; going on without a vocabulary", error)
            return None

    @property
    def flat(self) -> dict[str, np.ndarray]:
        """{"a/b/kernel": array}."""
        return flatten_dict(self.params, sep="/")


def hash_of(flat: Mapping[str, np.ndarray]) -> str:
    """sha256 of arrays with their names and shapes: the same however they are stored."""
    total = hashlib.sha256()
    for name, array in sorted(flat.items()):
        total.update(f"{name} {array.dtype} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def read_weights(path: str | Path, *, model: nn.Module | None = None, best: str = "") -> Weights:
    """Read a run directory or a Hugging Face folder.

    Of a training run the newest checkpoint that verifies is read, and of its parameters the
    averaged ones where the run keeps an average.

    Args:
      model: the module, where the run's is not one of flaxlm's own.
      best: as `Run.keep_best`: of a training run the best of the checkpoints that were evaluated
        comes before the newest.

    Raises:
      MissingInput: there is no such folder, or nothing of the kind in it.
      DataError, ConfigError: what is there does not fit together.
      StorageError: it is damaged.
    """
    folder = Path(os.path.expanduser(path)).absolute()
    if (folder / "experiment.json").is_file():
        return _of_training(folder, model, best)
    if (folder / MODEL).is_file():
        return _of_conversion(folder, model)
    if (folder / "config.json").is_file():
        return _of_folder(folder, model)
    if not folder.is_dir():
        raise MissingInput(
            f"{path}: there is no such folder; a model of the Hugging Face hub is fetched first, "
            f"hf download NAME --local-dir DIR"
        )
    raise MissingInput(
        f"{folder} is neither a run directory (experiment.json or {MODEL}) nor a Hugging Face "
        f"folder (config.json)"
    )


def write_run(folder: Path, model: nn.Module, params: Mapping, vocab: Vocab | None) -> None:
    """Write a converted run. Its manifest comes last: without one, the folder is none.

    Raises:
      StorageError: it cannot be written.
    """
    write_json(folder / MODEL, to_json(model))
    flat = {name: np.asarray(x) for name, x in flatten_dict(dict(params), sep="/").items()}
    safetensors.write(folder / PARAMS, flat, format="flaxlm")

    if vocab is not None:
        write_whole(folder / VOCAB, vocab.model)
    facts = {"sentinels": 0 if vocab is None else len(vocab.sentinels)}
    try:
        manifest.write(folder, facts)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def _of_folder(folder: Path, model: nn.Module | None) -> Weights:
    found, params = read_folder(folder)
    template = family_of_model(found).TOKENIZER
    path = folder if has_vocab(folder) else None
    return Weights(folder, model or found, params, path, sentinels_of(folder, template))


def _of_conversion(folder: Path, model: nn.Module | None) -> Weights:
    try:
        facts = manifest.read(folder, "sentinels")
        manifest.verify(folder, facts)
    except manifest.Damaged as damage:
        raise StorageError(f"{folder}: {damage}; convert it again") from None
    if model is None:
        model = rebuild(_json(folder / MODEL), where=str(folder / MODEL))
    params = _tree_of(safetensors.read(folder / PARAMS), where=folder / PARAMS)
    vocab = folder / VOCAB
    return Weights(folder, model, params, vocab if vocab.is_file() else None, facts["sentinels"])


def _of_training(folder: Path, model: nn.Module | None, best: str) -> Weights:
    described = _json(folder / "experiment.json", "model", "data")
    try:
        sentinels = described["data"]["vocabulary"]["sentinels"]
    except (TypeError, KeyError):
        sentinels = None
    if type(sentinels) is not int or sentinels < 0:
        raise DataError(f"{folder / 'experiment.json'}: data.vocabulary.sentinels is no number")
    if model is None:
        model = rebuild(described["model"], where=f"{folder / 'experiment.json'}: model")
    step, found = _newest(folder / "checkpoints", best)
    params = _restore(folder / "checkpoints" / str(step) / "state", found["tree"])
    if DELTAS in params:
        params = _lora_of(described, folder / "experiment.json").merged(params)
    vocab = folder / VOCAB if (folder / VOCAB).is_file() else None
    return Weights(folder, model, params, vocab, sentinels, step)


def _lora_of(described: Mapping, where: Path) -> LoRA:
    """As a run declared it; what learned how does not matter any more."""
    try:
        return LoRA(rank=described["lora"]["rank"], alpha=described["lora"]["alpha"])
    except (TypeError, KeyError, UserError) as error:
        raise DataError(f"{where}: lora does not say rank and alpha ({error})") from None


def _tree_of(flat: Mapping[str, np.ndarray], *, where: Path) -> dict:
    inner = {name[:at] for name in flat for at, letter in enumerate(name) if letter == "/"}
    if both := sorted(inner & set(flat)):
        raise DataError(f"{where}: {both[0]!r} is both a parameter and a group of them")
    return unflatten_dict(dict(flat), sep="/")


def _newest(folder: Path, best: str) -> tuple[int, dict]:
    """The best step, or else the newest, that verifies, and its manifest. Nothing is set aside: the
    run is not ours.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    if best:
        saved = [Saved(step, metrics=_metrics(folder / str(step))) for step in steps]
        steps = Retention(1, best=best).best_first(saved)
    for step in steps:
        try:
            found = manifest.read(folder / str(step), "tree")
            manifest.verify(folder / str(step), found)
        except manifest.Damaged as damage:
            log.warning("checkpoint %s is damaged: %s; not used", folder / str(step), damage)
            continue
        return step, found
    if steps:
        raise StorageError(f"no checkpoint in {folder} verifies")
    raise MissingInput(f"{folder} has no checkpoint yet")


def _metrics(checkpoint: Path) -> dict:
    try:
        return manifest.read(checkpoint, "metrics")["metrics"]
    except manifest.Damaged:  # said when its turn comes
        return {}


def _restore(path: Path, tree: Mapping) -> dict:
    """The parameters of a checkpoint: the averages of them, if the optimizer keeps some."""
    names = [name.removeprefix("params/") for name in tree if name.startswith("params/")]
    # `optim.Average` keeps a tree of the parameters' form in its field "params"; nothing else does.
    prefix = "params/"
    for candidate in sorted(name.removesuffix(names[0]) for name in tree if name.startswith("opt")):
        if candidate.endswith("/params/") and all(candidate + name in tree for name in names):
            prefix = candidate
    logging.getLogger("absl").addFilter(quiet)
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path).item_metadata.tree

        def wanted(at, leaf):
            if path_name(at).startswith(prefix):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            return ocp.PLACEHOLDER

        item = jax.tree_util.tree_map_with_path(wanted, stored)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        state = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=item, restore_args=kinds)
        )
    leaves = jax.tree_util.tree_leaves_with_path(state)
    flat = {path_name(at): leaf for at, leaf in leaves}
    return unflatten_dict({name: np.asarray(flat[prefix + name]) for name in names}, sep="/")


def _json(path: Path, *needs: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object")
    missing = [name for name in needs if name not in value]
    if missing:
        raise DataError(f"{path} has no {missing[0]!r}")
    return value
