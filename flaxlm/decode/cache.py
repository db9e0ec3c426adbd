"""A text that grows token by token, with the keys and values of what stands there.

A `Text` is a tree of arrays that goes in and comes out: nothing is kept elsewhere. What a model
computes for a token it sows in the Flax collection "present", and what it reads of earlier ones is
in the collection "past" (nn.attention.Attention); both are [layers, B, H, S, K], or a tuple of
[B, H, S, K] where the layers' parameters are (nn.stack.apart).

Prompts of different lengths are padded on the left: the tokens of a step then stand in one column,
distances between columns are those between tokens, and positions are counted from a row's own first
token. Shapes: `B` rows, `C` columns, `P` of them in the prompt, `V` vocabulary, `S` keys.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm.losses import Readout

# Beside attention to the text itself; of these keys and values there are no new ones.
_CROSS = "cross_attention"


class Text(NamedTuple):
    """Rows of text at some moment.

    Attributes:
      tokens: [B, C], those of the columns below `column`.
      segments: [B, C], 1 but for the padding of the prompt.
      column: where the next token goes.
      own: {path: [layers, B, H, C, K], or a tuple of [B, H, C, K]} keys and values of the text but
        for its last token.
      memory: {path: likewise, with S for C} of an encoder's output; {} in a decoder-only model.
      features: what else the model reads in every step, rows first.
    """

    tokens: jax.Array
    segments: jax.Array
    column: jax.Array
    own: Mapping[tuple[str, ...], jax.Array]
    memory: Mapping[tuple[str, ...], jax.Array]
    features: Mapping[str, jax.Array]

    def known(self) -> jax.Array:
        """[B, C] booleans: where there is a token."""
        return (self.segments == 1) & (jnp.arange(self.tokens.shape[1]) < self.column)[None]

    def add(self, tokens_B: jax.Array) -> "Text":
        """With another token at the end of every row."""
        tokens = jax.lax.dynamic_update_slice_in_dim(
            self.tokens, tokens_B[:, None], self.column, axis=1
        )
        return self._replace(tokens=tokens, column=self.column + 1)

    def repeat(self, times: int) -> "Text":
        """Every row so many times, next to each other."""
        return self._map(lambda x, axis: jnp.repeat(x, times, axis=axis))

    def take(self, rows_B: jax.Array) -> "Text":
        """The rows of that number, where each has the prompt of the one whose place it takes."""

        def take(x, axis):
            return jnp.take(x, rows_B, axis=axis, mode="clip")

        return self._replace(tokens=take(self.tokens, 0), own=_each(take, self.own))

    def _map(self, change: Callable) -> "Text":
        return Text(
            change(self.tokens, 0),
            change(self.segments, 0),
            self.column,
            _each(change, self.own),
            _each(change, self.memory),
            jax.tree.map(partial(change, axis=0), self.features),
        )


def _each(change: Callable, kept: Any, *others: Any) -> Any:
    """`change(x, ..., the axis of its rows)` of keys and values, in a stack or apart."""
    return jax.tree.map(lambda x, *more: change(x, *more, axis=x.ndim - 4), kept, *others)


def has_encoder(model: nn.Module) -> bool:
    """Whether a model that generates reads its prompt with an encoder."""
    return hasattr(model, "decode")


def begin(
    model: nn.Module, params: Any, prompts: Mapping[str, jax.Array], room: int
) -> tuple[jax.Array, Text]:
    """([B, V] logits of the first new token, the text that it is to be added to).

    Args:
      prompts: "tokens" and "segments" [B, P]. Of a decoder-only model padded on the left, so that
        the last column is the last of every prompt; of an encoder-decoder padded on the right, and
        "decoder_tokens" [B, P'], with which every answer begins.
      room: columns for new tokens.
    """
    variables = {"params": params}
    if has_encoder(model):
        side, features = "decoder_", {"segments": prompts["segments"]}
        first = {"tokens": prompts["tokens"], **features}
        encoder = model.apply(variables, first, method="encode", train=False)
        tokens = prompts["decoder_tokens"]
        segments = jnp.ones_like(tokens)
        features = {**features, "encoder": encoder}
    else:
        side, features = "", {"prefix": _widened(prompts["segments"], room, 0)}
        tokens, segments = prompts["tokens"], prompts["segments"]
    text = Text(
        _widened(tokens, room, 0),
        _widened(segments, room, 1),
        jnp.asarray(tokens.shape[1]),
        {},
        {},
        features,
    )
    first = {side + "tokens": tokens, side + "segments": segments, **_places(segments, side)}
    if not side:
        first["prefix"] = segments
    readout, present = _applied(model, variables, text, first)
    memory = {path: x for path, x in present.items() if _CROSS in path}
    own = {path: x for path, x in present.items() if path not in memory}
    own = jax.tree.map(lambda x: _widened(x, room, 0, axis=-2), own)
    return _logits(readout), text._replace(own=own, memory=memory)


def go_on(model: nn.Module, params: Any, text: Text) -> tuple[jax.Array, Text]:
    """([B, V] logits of the token after the last one, the text with that one's keys and values)."""
    readout, text = read_out(model, params, text)
    return _logits(readout), text


def read_out(model: nn.Module, params: Any, text: Text) -> tuple[Readout, Text]:
    """As `go_on`, with the readout [B, 1, D] of the last token instead of its logits."""
    side = "decoder_" if has_encoder(model) else ""
    at = text.column - 1

    def last(x_BC):
        return jax.lax.dynamic_slice_in_dim(x_BC, at, 1, axis=1)

    step = {side + "tokens": last(text.tokens), side + "segments": text.segments, "column": at}
    step |= {name: last(x) for name, x in _places(text.segments, side).items()}
    variables = {"params": params, "past": unflatten_dict({**text.own, **text.memory})}
    readout, present = _applied(model, variables, text, step)

    def put(before, new, axis):
        return jax.lax.dynamic_update_slice_in_dim(before, new, at, axis=axis + 2)

    own = _each(put, dict(text.own), {path: present[path] for path in text.own})
    return readout, text._replace(own=own)


def _applied(model, variables, text: Text, batch):
    """(readout of a batch, {path: keys or values} of all its columns)."""
    features = dict(text.features)
    if has_encoder(model):
        found, sown = model.apply(
            variables,
            features.pop("encoder"),
            features | batch,
            method="decode",
            train=False,
            mutable=["present"],
        )
    else:
        found, sown = model.apply(variables, features | batch, train=False, mutable=["present"])
    return found["logits"], flatten_dict(sown["present"])


def _logits(readout: Readout) -> jax.Array:
    """[B, V] after the last column."""
    return readout.logits(readout.hidden[:, -1])[:, : readout.vocab]


def _places(segments_BC: jax.Array, side: str) -> dict[str, jax.Array]:
    """Positions counted from the first token of every row."""
    return {side + "positions": jnp.maximum(jnp.cumsum(segments_BC, axis=1) - 1, 0)}


def _widened(x: jax.Array, room: int, value: int, axis: int = -1) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, room)
    return jnp.pad(x, widths, constant_values=value)
