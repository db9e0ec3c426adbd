"""What a masked language model puts in the place of its masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.batch import Features
from flaxlm.decode.prompts import bucket
from flaxlm.errors import ConfigError, DataError
from flaxlm.losses import Readout


@dataclass(frozen=True)
class Filled:
    """A token in the place of a mask.

    Attributes:
      text: the token as text.
      id: the token.
      probability: what the model gives it.
    """

    text: str
    id: int
    probability: float


def fill(lm, texts: Sequence[str], *, top: int) -> list[list[list[Filled]]]:
    """For every text, for every mask in it, the most likely tokens. See `flaxlm.lm.LM.fill`."""
    vocab, model = lm.vocab, lm.model
    if hasattr(model, "decode") or hasattr(model, "prompt"):
        raise ConfigError(f"{type(model).__name__} writes texts: generate; a masked model fills in")
    longest = max((len(row) for row in lm.batch(texts)["tokens"]), default=1)
    limit = getattr(model, "longest", None) or longest
    batch = lm.batch(texts, length=bucket(longest, limit=limit))
    if vocab.mask is None:
        raise ConfigError(f"{lm.path}: the vocabulary has no mask")
    masks = [np.flatnonzero(row == vocab.mask) for row in batch["tokens"]]
    for text, places in zip(texts, masks, strict=True):
        if not len(places):
            raise DataError(f"{text[:60]!r} has no {vocab.piece(vocab.mask)}")
    slots = np.zeros((len(texts), bucket(max(map(len, masks)))), np.int32)
    for row, places in enumerate(masks):
        slots[row, : len(places)] = places
    count = min(top, model.size.vocab)
    shares, ids = jax.device_get(best(model, count, lm.params, batch, slots))
    return [
        [
            [
                Filled(vocab.decode([at]) if at < vocab.size else "", int(at), float(share))
                for at, share in zip(ids[row, place], shares[row, place], strict=True)
            ]
            for place in range(len(places))
        ]
        for row, places in enumerate(masks)
    ]


@partial(jax.jit, static_argnums=(0, 1))
def best(model, count: int, params, batch: Features, slots: jax.Array):
    """(probabilities, ids) [B, slots, count], best first."""
    readout = model.apply({"params": params}, batch, train=False).get("logits")
    if not isinstance(readout, Readout):
        raise ConfigError(f"{type(model).__name__} predicts no tokens")
    logits = readout.take(slots).logits()[..., : readout.vocab]
    return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), count)
