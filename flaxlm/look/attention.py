"""Attention weights of one text, of every layer and head.

`N` layers, `H` heads, `Q` queries, `S` keys, `L` length.
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from flaxlm import named
from flaxlm.batch import Features
from flaxlm.decode.cache import has_encoder
from flaxlm.decode.prompts import Reader
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.look.pieces import pieces
from flaxlm.step import ByName, MissingName, carried


@dataclass(frozen=True)
class Maps:
    """The weights of one stack of layers.

    Attributes:
      name: of the attention among the model's parameters, "encoder/layers/attention".
      weights: [N, H, Q, S], the softmax that the model multiplies values with: over S they sum to
        1.
      queries: [Q] who attends, as text.
      keys: [S] to whom.
    """

    name: str
    weights: np.ndarray
    queries: tuple[str, ...]
    keys: tuple[str, ...]


def attention(lm, text: str, *, pair: str = "", target: str = "") -> list[Maps]:
    """The weights of a model on a text, without dropout, whatever kernel it trains with.

    Args:
      lm: a `flaxlm.lm.LM`.
      text: around which the family's tokenizer puts its symbols.
      pair: a second text, for models that read two.
      target: what a decoder says, for models with an encoder.

    Raises:
      ConfigError: the model has no attention, or no second text, or `target` is missing.
      DataError: the text is too long for the model.
      MissingInput: the model came without a vocabulary, or reads what no text has.
    """
    batch = _batch(lm, text, pair, target)
    _check_length(lm, batch)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    memory = {n: np.zeros(x.shape, x.dtype) for n, x in carried(lm.model, shapes).items()}
    try:
        found = _weights(lm.model, lm.params, {**batch, **memory})
    except MissingName as error:
        raise MissingInput(f"{type(lm.model).__name__} cannot be looked at: {error}") from None
    if not found:
        raise ConfigError(f"{type(lm.model).__name__} has no attention to look at")
    said = {side: _said(lm.vocab, batch, side) for side in ("", "decoder_")}
    maps = []
    for path, x_NBHQS in found.items():
        name, weights = path.removesuffix("/weights"), np.asarray(x_NBHQS)[:, 0]
        place = name.split("/")
        decodes = said["decoder_"] and "decoder" in place
        queries = said["decoder_" if decodes else ""]
        keys = said[""] if "cross_attention" in place else queries
        before = weights.shape[-1] - len(keys)  # a memory stands before the text
        maps.append(Maps(name, weights, queries, ("(memory)",) * before + keys))
    return maps


def _batch(lm, text: str, pair: str, target: str) -> Features:
    """One row, and what objectives add to rows: here everything is visible."""
    if lm.vocab is None:
        raise MissingInput(f"{lm.path} has no vocabulary to read a text with")
    if has_encoder(lm.model) != bool(target):
        name = type(lm.model).__name__
        raise ConfigError(
            f"{name} has a decoder: say with `target` (--target) what it says"
            if not target
            else f"{name} has no encoder, so no `target` (--target): put all of it in the text"
        )
    if hasattr(lm.model, "prompt"):
        if pair:
            raise ConfigError(f"{type(lm.model).__name__} reads one text: put both into it")
        batch = _row(Reader.of(lm.model, lm.vocab).ids(text))
    else:
        batch = lm.batch([text], [pair] if pair else None, targets=[target] if target else None)
    length = batch["tokens"].shape[1]
    if not length:
        raise DataError("the text is empty")
    return batch | {
        "prefix": np.ones((1, length), np.int32),
        "order": np.arange(length, dtype=np.int32)[None],
        "reach": np.full((1, length), length, np.int32),
        "slots": np.zeros((1, 1), np.int32),
    }


def _row(ids: np.ndarray) -> Features:
    tokens = ids[None].astype(np.int32)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    return {"tokens": tokens, "segments": np.ones_like(tokens), "positions": positions}


def _check_length(lm, batch: Features) -> None:
    longest = getattr(lm.model, "longest", None)
    for name in ("tokens", "decoder_tokens"):
        length = batch[name].shape[1] if name in batch else 0
        if longest is not None and length > longest:
            raise DataError(f"the text has {length} tokens, the model {longest} positions")


def _said(vocab, batch: Features, side: str) -> tuple[str, ...]:
    name = side + "tokens"
    return tuple(pieces(vocab, batch[name][0])) if name in batch else ()


@partial(jax.jit, static_argnums=0)
def _weights(model, params, batch) -> dict[str, jax.Array]:
    """{path: [N, B, H, Q, S]}."""
    features = ByName("feature", batch)
    _, sown = model.apply({"params": params}, features, train=False, mutable=["attention"])
    leaves = jax.tree_util.tree_leaves_with_path(sown["attention"] if "attention" in sown else {})
    return {named.path_name(path): leaf for path, leaf in leaves}
