"""What settings do to the scores of the next token, in the order that transformers has.

`B` rows, `C` columns of text, `V` vocabulary, `N` new tokens.
"""

import jax
import jax.numpy as jnp

from flaxlm.decode.cache import Text
from flaxlm.decode.settings import Settings

NEVER = -1e30  # the score of what must not be chosen; finite: sums of it stay numbers


def allowed(
    scores_BV: jax.Array,
    text: Text,
    *,
    settings: Settings,
    made: jax.Array,
    forced_BN: jax.Array,
    eos: int | None,
) -> jax.Array:
    """[B, V] scores (logits or log-probabilities) under the controls that hold for every way to
    choose: penalties, n-grams, least length, tokens that are given.

    Args:
      made: new tokens so far.
      forced_BN: [B, N or fewer] the first new tokens where they are given, else -1.
      eos: the end of text; None: there is none.
    """
    if settings.repetition_penalty != 1.0:
        penalty = settings.repetition_penalty
        weaker = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
        scores_BV = jnp.where(_marked(scores_BV, text.tokens, text.known()), weaker, scores_BV)
    if settings.no_repeat_ngram_size:
        ends = _ends_known(text, settings.no_repeat_ngram_size)
        scores_BV = jnp.where(_marked(scores_BV, text.tokens, ends), NEVER, scores_BV)
    if settings.min_new_tokens and eos is not None:
        early = (jnp.arange(scores_BV.shape[1]) == eos) & (made < settings.min_new_tokens)
        scores_BV = jnp.where(early[None], NEVER, scores_BV)
    if forced_BN.shape[1]:
        given_B1 = jax.lax.dynamic_slice_in_dim(
            forced_BN, jnp.minimum(made, forced_BN.shape[1] - 1), 1, axis=1
        )
        given_B1 = jnp.where(made < forced_BN.shape[1], given_B1, -1)
        other = (jnp.arange(scores_BV.shape[1])[None] != given_B1) & (given_B1 >= 0)
        scores_BV = jnp.where(other, NEVER, scores_BV)
    return scores_BV


def warped(logits_BV: jax.Array, *, settings: Settings) -> jax.Array:
    """[B, V] logits to draw from: temperature, top-k, top-p, typical."""
    logits_BV = logits_BV / settings.temperature
    vocab = logits_BV.shape[1]
    if 0 < settings.top_k < vocab:
        least_B1 = jax.lax.top_k(logits_BV, settings.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, NEVER, logits_BV)
    if settings.top_p < 1.0:
        logits_BV = _nucleus(logits_BV, -logits_BV, settings.top_p)
    if settings.typical_p < 1.0:
        surprise_BV = -jax.nn.log_softmax(logits_BV, axis=-1)
        expected_B1 = jnp.sum(jnp.exp(-surprise_BV) * surprise_BV, axis=-1, keepdims=True)
        distance_BV = jnp.abs(surprise_BV - expected_B1)
        logits_BV = _nucleus(logits_BV, distance_BV, settings.typical_p)
    return logits_BV


def _nucleus(logits_BV, order_BV, mass: float):
    """Logits of the tokens that come first in an order, as many as have that probability together;
    one at least.
    """
    by_order_BV = jnp.argsort(order_BV, axis=-1)
    share_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), by_order_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    kept_BV = jnp.put_along_axis(
        jnp.zeros(logits_BV.shape, bool), by_order_BV, before_BV < mass, axis=-1, inplace=False
    )
    return jnp.where(kept_BV, logits_BV, NEVER)


def _marked(scores_BV, tokens_BC, where_BC):
    """[B, V] booleans: the tokens of the columns marked."""
    rows_B1 = jnp.arange(len(tokens_BC))[:, None]
    return jnp.zeros(scores_BV.shape, bool).at[rows_B1, tokens_BC].max(where_BC)


def _ends_known(text: Text, size: int):
    """[B, C] booleans: columns whose token ended, the first time, a run that begins as the text
    ends.
    """
    known_BC = text.known()
    columns = known_BC.shape[1]
    same_BC = known_BC
    for back in range(1, size):
        # The token `back` columns before, and the one that will be so far before the next.
        earlier_BC = jnp.pad(text.tokens, ((0, 0), (back, 0)))[:, :columns]
        real_BC = jnp.pad(known_BC, ((0, 0), (back, 0)))[:, :columns]
        at = jnp.maximum(text.column - back, 0)
        last_B1 = jax.lax.dynamic_slice_in_dim(text.tokens, at, 1, axis=1)
        last_real_B1 = jax.lax.dynamic_slice_in_dim(known_BC, at, 1, axis=1)
        last_real_B1 = last_real_B1 & (text.column >= back)
        same_BC = same_BC & real_BC & last_real_B1 & (earlier_BC == last_B1)
    return same_BC
