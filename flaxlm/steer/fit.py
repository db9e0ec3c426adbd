"""Heads for attributes: softmax regression on what a model makes of texts."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxlm.decode.prompts import Reader, padded
from flaxlm.decode.settings import Settings
from flaxlm.errors import DataError
from flaxlm.steer.attributes import Head


def fit_head(
    lm,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    classes: int,
    label: int,
    steps: int = 300,
    rate: float = 1e-2,
    rows: int = 16,
) -> Head:
    """A head for the classes of texts: softmax regression on the mean hidden states of the model,
    which stays as it is.

    Args:
      labels: a class of each text.
      label: the one that the head is to lead to.
      steps: of Adam over all texts at once.

    Raises:
      DataError: a label is none of the classes.
    """
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= classes or not 0 <= label < classes:
        raise DataError(f"labels from {labels.min()} to {labels.max()} of {classes} classes")
    means_ND = jnp.asarray(mean_hidden(lm, texts, rows=rows))
    weights = {"kernel": jnp.zeros((means_ND.shape[1], classes)), "bias": jnp.zeros(classes)}
    adam = optax.adam(rate)

    def loss(weights):
        logits = means_ND @ weights["kernel"] + weights["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        weights, state = carry
        updates, state = adam.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    start = (weights, adam.init(weights))
    (weights, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))(start)
    return Head(weights["kernel"], weights["bias"], label)


def mean_hidden(lm, texts: Sequence[str], *, rows: int = 16) -> np.ndarray:
    """[N, D] mean over the tokens of each text, the end of another one before it included."""
    reader, means = Reader.of(lm.model, lm.vocab), []
    settings = Settings(max_new_tokens=1)
    for start in range(0, len(texts), rows):
        part = [np.append(reader.ids(""), reader.ids(text)) for text in texts[start : start + rows]]
        reader.check(part, settings)
        empty = [np.zeros(0, np.int32)] * len(part)
        inputs = padded(reader, part, empty, settings, seed=0, first=0)
        means.append(np.asarray(_mean(lm.model, lm.params, inputs.prompts))[: len(part)])
    return np.concatenate(means)


@partial(jax.jit, static_argnums=0)
def _mean(model, params, prompts) -> jax.Array:
    hidden_BLD = model.apply({"params": params}, with_positions(prompts), train=False)["hidden"]
    real_BL1 = prompts["segments"][..., None]
    return (hidden_BLD * real_BL1).sum(axis=1) / real_BL1.sum(axis=1)


def with_positions(prompts: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Tokens and segments with the positions that a model reads."""
    segments = prompts["segments"]
    return {**prompts, "positions": jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)}
