"""What every token of a text costs a model: its negative log-likelihood in nat.

A decoder-only model pays for a token after those before it, an encoder-decoder for what its decoder
says, and a masked model for every token in turn behind a mask, all others visible (the pseudo
log-likelihood of Salazar et al. 2020, "Masked language model scoring", arXiv:1910.14659).
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from flaxlm import likelihood
from flaxlm.batch import Features
from flaxlm.decode.cache import has_encoder
from flaxlm.decode.prompts import bucket
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.look.pieces import pieces
from flaxlm.losses import Readout, judged
from flaxlm.step import ByName, MissingName

_ROWS = 16


@dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
      text: what it adds to the text.
      nats: its negative log-likelihood; None of what is not predicted.
    """

    text: str
    nats: float | None


def losses(lm, text: str, *, context: str = "") -> list[Token]:
    """The cost of each token.

    Args:
      lm: a `flaxlm.lm.LM` that predicts tokens.
      text: of any length for a decoder-only model, in windows of its positions.
      context: what an encoder-decoder reads before it says `text`.

    Raises:
      ConfigError: the model predicts no tokens, or has no encoder for a context.
      DataError: the text is empty, or longer than the model's positions.
      MissingInput: the model came without a vocabulary, or reads what no text has.
    """
    if lm.vocab is None:
        raise MissingInput(f"{lm.path} has no vocabulary to read a text with")
    if has_encoder(lm.model) or hasattr(lm.model, "prompt"):
        found = likelihood.of_tokens(lm, text, context=context)
        ids, nats = [token for token, _ in found], [-value for _, value in found]
    else:
        if context:
            raise ConfigError(f"{type(lm.model).__name__} has no encoder: put all into the text")
        ids, nats = _masked(lm, text)
    if not ids:
        raise DataError("the text is empty")
    return [Token(*pair) for pair in zip(pieces(lm.vocab, ids), nats, strict=True)]


def _masked(lm, text: str) -> tuple[list[int], list[float | None]]:
    """(ids, costs) of a row, each token masked in turn."""
    row = lm.batch([text])
    ids, longest = row["tokens"][0], getattr(lm.model, "longest", None)
    if longest is not None and len(ids) > longest:
        raise DataError(f"the text has {len(ids)} tokens, the model {longest} positions")
    if lm.vocab.mask is None:
        raise ConfigError(f"{lm.path}: the vocabulary has no mask, and the model writes no texts")
    row = lm.batch([text], length=bucket(len(ids), limit=longest))
    places = np.flatnonzero(~lm.vocab.special[ids])
    nats: list[float | None] = [None] * len(ids)
    for start in range(0, len(places), _ROWS):
        part = places[start : start + _ROWS]
        slots = np.resize(part, _ROWS)[:, None].astype(np.int32)
        batch = {name: np.repeat(x, _ROWS, axis=0) for name, x in row.items()}
        targets = np.take_along_axis(batch["tokens"], slots, axis=1)
        np.put_along_axis(batch["tokens"], slots, lm.vocab.mask, axis=1)
        try:
            found = jax.device_get(_behind_masks(lm.model, lm.params, batch, slots, targets))
        except MissingName as error:
            raise MissingInput(f"{type(lm.model).__name__} cannot be looked at: {error}") from None
        for place, cost in zip(part.tolist(), found[:, 0].tolist(), strict=False):
            nats[place] = cost
    return ids.tolist(), nats


@partial(jax.jit, static_argnums=0)
def _behind_masks(model, params, batch: Features, slots, targets) -> jax.Array:
    """[B, slots] negative log-likelihoods."""
    outputs = model.apply({"params": params}, ByName("feature", batch), train=False)
    readout = outputs.get("logits")
    if not isinstance(readout, Readout):
        raise ConfigError(f"{type(model).__name__} predicts no tokens")
    return judged(readout.take(slots), targets)[0]
