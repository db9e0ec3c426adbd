"""Generation from a trained model."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from flaxlm.batch import Batch


def greedy(apply, batch: Batch) -> jax.Array:
    """Most likely decoder ids, one position at a time, each seeing the ones before.

    The whole decoder runs anew for every position: right for a handful of examples, not for
    serving.

    Args:
      apply: the model with its parameters (`objectives.base.Apply`); returns "logits", a
        `losses.Readout`.
      batch: features of an encoder-decoder; of the decoder's, only the first column of
        "decoder_tokens" [B, M], the start ids, and its shape are used.

    Returns:
      [B, M] int32 predicted ids.
    """
    shape = batch["decoder_tokens"].shape
    start = batch["decoder_tokens"][:, :1]
    everywhere = jnp.ones(shape, jnp.int32)

    def fill(position, carry):
        tokens, predicted = carry
        inputs: Mapping = {**batch, "decoder_tokens": tokens, "decoder_segments": everywhere}
        best = apply(inputs, rng=None)["logits"].at(position).argmax(axis=-1).astype(jnp.int32)
        predicted = jax.lax.dynamic_update_slice_in_dim(predicted, best[:, None], position, axis=1)
        # The prediction at a position is the input of the next; the last one has none and falls
        # off.
        tokens = jnp.concatenate([start, predicted[:, :-1]], axis=1)
        return tokens, predicted

    blank = jnp.broadcast_to(start, shape)
    return jax.lax.fori_loop(0, shape[1], fill, (blank, blank))[1]
