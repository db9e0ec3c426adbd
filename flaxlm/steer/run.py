"""The algorithm, token by token, as one jitted loop. What is moved stays moved.

After the published code (run_pplm.py), but for rows: there a batch has one norm, here every row has
its own, so that a text does not depend on the rows beside it. `B` rows, `C` columns, `D` width, `V`
vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.decode import cache
from flaxlm.decode.prompts import Answer, Prompt, Reader, bucket, padded
from flaxlm.decode.settings import Settings
from flaxlm.errors import ConfigError, DataError
from flaxlm.nn.embed import blended
from flaxlm.steer.attributes import SMALL, Attribute, Head, Hidden
from flaxlm.steer.fit import with_positions
from flaxlm.steer.settings import Steering


def steered(
    lm,
    prompts: Sequence[Prompt],
    attributes: Sequence[Attribute],
    steering: Steering | None = None,
    *,
    tokens: int = 40,
    seed: int = 0,
    rows: int = 16,
) -> list[Answer]:
    """What a model says to each prompt when it is led towards the attributes.

    Args:
      lm: a decoder-only `flaxlm.lm.LM`.
      attributes: () leaves the model alone.
      tokens: how many new ones.
      rows: prompts at a time.

    Returns:
      Their log-likelihood is that of the model as it is, given the text so far.

    Raises:
      ConfigError: the model has an encoder, or does not write, or a text would be too long.
      DataError: a head is of another width.
    """
    if cache.has_encoder(lm.model):
        raise ConfigError(f"{type(lm.model).__name__} has an encoder: decoder-only models are led")
    steering, settings = steering or Steering(), Settings(max_new_tokens=tokens)
    reader = Reader.of(lm.model, lm.vocab)
    ids = [reader.ids(prompt) for prompt in prompts]
    reader.check(ids, settings)
    for one in attributes:
        if isinstance(one, Head) and one.kernel.shape[0] != lm.model.size.width:
            raise DataError(
                f"the head reads {one.kernel.shape[0]} numbers, the model's hidden states have "
                f"{lm.model.size.width}"
            )
    answers = []
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows]
        empty = [np.zeros(0, np.int32)] * len(part)
        inputs = padded(reader, part, empty, settings, seed=seed, first=start)
        found, nats = jax.device_get(
            _run(lm.model, steering, bucket(tokens), lm.params, inputs.prompts, tuple(attributes),
                 inputs.keys, tokens)
        )  # fmt: skip
        for row, prompt in enumerate(part):
            new = tuple(found[row, :tokens].tolist())
            likelihood = float(nats[row])
            answers.append(
                Answer(reader.text(prompt, new), new, likelihood, likelihood / max(tokens, 1))
            )
    return answers


class _State(NamedTuple):
    """A moment of `_run`.

    Attributes:
      plain: the text as the model reads it.
      led: the same with what was moved.
      largest: {path: [layers, B]} norms that steps are divided by.
      past: [B, D] sum of the hidden states of all tokens but the last, nothing moved.
      made: new tokens.
      nats: [B] their log-likelihood.
    """

    plain: cache.Text
    led: cache.Text
    largest: Mapping
    past: jax.Array
    made: jax.Array
    nats: jax.Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(model, steering: Steering, room: int, params, prompts, attributes, keys, tokens):
    """([B, room] new tokens, [B] log-likelihoods)."""
    _, text = cache.begin(model, params, prompts, room)
    hidden_BLD = model.apply({"params": params}, with_positions(prompts), train=False)["hidden"]
    before_BL = prompts["segments"][:, :-1]  # prompts are padded on the left
    past_BD = (hidden_BLD[:, :-1] * before_BL[..., None]).sum(axis=1).astype(jnp.float32)
    rows = past_BD.shape[0]
    largest = {_layer(path): jnp.zeros((x.shape[0], rows)) for path, x in text.own.items()}
    state = _State(text, text, largest, past_BD, jnp.zeros((), jnp.int32), jnp.zeros(rows))
    state = jax.lax.while_loop(
        lambda state: state.made < tokens,
        partial(_next, model, steering, params, attributes, keys),
        state,
    )
    return state.plain.tokens[:, -room:], state.nats


def _next(model, steering, params, attributes, keys_B, state: _State) -> _State:
    """One token more."""
    # Keys and values of the last token are computed anew by every look at it.
    plain, after = _look(model, params, state.plain)
    unmoved_BV = jax.nn.log_softmax(plain.logits)
    where_BC, count_B = _where(state.plain, steering)
    size = jnp.float32(steering.step)
    if steering.until:
        size = jnp.where(state.made < steering.until, size, 0.0)

    def look(moves):
        return _look(model, params, state.led._replace(own=_moved(state.led.own, moves, where_BC)))

    def loss(moves):
        found, _ = look(moves)
        shares_BV = jax.nn.softmax(found.logits)
        ahead_BD = _look_ahead(model, params, after, shares_BV)
        past_BD = state.past + jax.lax.stop_gradient(found.hidden)
        hidden = Hidden(shares_BV, past_BD, count_B, ahead_BD)
        apart_BV = jax.nn.log_softmax(found.logits) - unmoved_BV
        total_B = steering.kl * (shares_BV * apart_BV).sum(axis=1)
        return (total_B + sum(one.weight * one.loss(hidden) for one in attributes)).sum()

    def iterate(_, carry):
        moves, largest = carry
        gradients = jax.grad(loss)(moves)
        norms = _norms(gradients)
        if all(one.remembers for one in attributes):
            largest = jax.tree.map(jnp.maximum, largest, norms)
        else:
            largest = norms

        def moved(path, own):
            norm = (largest[_layer(path)] + SMALL)[:, :, None, None, None]
            return own - size * gradients[path] / norm**steering.gamma

        return {path: moved(path, own) for path, own in moves.items()}, largest

    moves = jax.tree.map(jnp.zeros_like, dict(state.led.own))
    times = steering.iterations if attributes else 0
    moves, largest = jax.lax.fori_loop(0, times, iterate, (moves, state.largest))
    found, led = look(moves)
    logs_BV = steering.fusion * jax.nn.log_softmax(found.logits / steering.temperature)
    logs_BV += (1 - steering.fusion) * unmoved_BV
    least_B1 = jax.lax.top_k(logs_BV, min(steering.top_k, logs_BV.shape[1]))[0][:, -1:]
    logs_BV = jnp.where(logs_BV >= least_B1, logs_BV, -jnp.inf)
    if steering.sample:
        keys_B = jax.vmap(lambda key: jax.random.fold_in(key, state.made))(keys_B)
        chosen_B = jax.vmap(jax.random.categorical)(keys_B, logs_BV).astype(jnp.int32)
    else:
        chosen_B = jnp.argmax(logs_BV, axis=1).astype(jnp.int32)
    gained_B = jnp.take_along_axis(unmoved_BV, chosen_B[:, None], axis=1)[:, 0]
    return _State(
        after.add(chosen_B),
        led.add(chosen_B),
        largest,
        state.past + plain.hidden,
        state.made + 1,
        state.nats + gained_B,
    )


def _where(text: cache.Text, steering: Steering) -> tuple[jax.Array, jax.Array]:
    """([B, C] where keys and values are moved: before the last token; [B] tokens of the text)."""
    known_BC = text.known()
    number_BC = jnp.cumsum(known_BC, axis=1)
    count_B = number_BC[:, -1]
    where_BC = known_BC & (number_BC < count_B[:, None])
    if not steering.window:
        return where_BC, count_B
    if steering.oldest:
        return where_BC & (number_BC <= steering.window), count_B
    return where_BC & (number_BC >= (count_B - steering.window)[:, None]), count_B


class _Seen(NamedTuple):
    """Of the last token: [B, V] logits of the next one and its own hidden state [B, D]."""

    logits: jax.Array
    hidden: jax.Array


def _look(model, params, text: cache.Text) -> tuple[_Seen, cache.Text]:
    readout, text = cache.read_out(model, params, text)
    logits_BV = readout.logits()[..., : readout.vocab]
    return _Seen(logits_BV[:, -1], readout.hidden[:, -1].astype(jnp.float32)), text


def _look_ahead(model, params, text: cache.Text, shares_BV: jax.Array) -> jax.Array:
    """[B, D] hidden state of a next token that is every token by its share."""

    blank_B = jnp.zeros(len(shares_BV), jnp.int32)
    with blended(shares_BV):
        readout, _ = cache.read_out(model, params, text.add(blank_B))
    return readout.hidden[:, -1].astype(jnp.float32)


def _layer(path: tuple[str, ...]) -> tuple[str, ...]:
    """Keys and values of a layer have one norm."""
    return path[:-1]


def _moved(own: Mapping, moves: Mapping, where_BC: jax.Array) -> dict:
    where = where_BC[None, :, None, :, None]
    return {path: x + jnp.where(where, moves[path], 0).astype(x.dtype) for path, x in own.items()}


def _norms(gradients: Mapping) -> dict:
    """{path: [layers, B]}."""
    sums: dict = {}
    for path, x in gradients.items():
        squares = jnp.square(x.astype(jnp.float32)).sum(axis=(2, 3, 4))
        sums[_layer(path)] = sums[_layer(path)] + squares if _layer(path) in sums else squares
    return {path: jnp.sqrt(x) for path, x in sums.items()}
