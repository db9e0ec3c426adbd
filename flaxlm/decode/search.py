"""The loop that all ways to generate share: begin with the prompts, add a token until every row is
done. It is one jitted program, or one per token where somebody watches.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from flaxlm.decode.settings import Settings


class Inputs(NamedTuple):
    """What a search is about; `B` rows, those that fill up a batch included.

    Attributes:
      prompts: see `decode.cache.begin`.
      forced: [B, N or fewer] int32: the first new tokens where they are given, else -1.
      limit: most new tokens, at most the search's room.
      keys: [B] random keys.
      real: [B] booleans: rows that somebody wants.
    """

    prompts: dict[str, jax.Array]
    forced: jax.Array
    limit: jax.Array
    keys: jax.Array
    real: jax.Array


class Found(NamedTuple):
    """What a search found.

    Attributes:
      tokens: [B, N] new tokens; what stands behind the end of text means nothing.
      lengths: [B] new tokens, the end of text included.
      likelihoods: [B] fp32, sums of the model's log-probabilities of these tokens.
      scores: [B] fp32 what rows were ranked by.
    """

    tokens: jax.Array
    lengths: jax.Array
    likelihoods: jax.Array
    scores: jax.Array


@dataclass(frozen=True)
class Search:
    """A way to generate; what is compiled depends on it and on the shapes of the inputs.

    Attributes:
      model: the module, decoder-only or with an encoder.
      settings: max_new_tokens is not read: `Inputs.limit` and `room` are.
      room: N, columns for new tokens.
      eos: the end of text; None: answers end at the limit.
    """

    model: nn.Module
    settings: Settings
    room: int
    eos: int | None

    def begin(self, params: Any, inputs: Inputs) -> Any:
        """The state with one new token."""
        raise NotImplementedError

    def step(self, params: Any, inputs: Inputs, state: Any) -> Any:
        """The state with one new token more."""
        raise NotImplementedError

    def unfinished(self, inputs: Inputs, state: Any) -> jax.Array:
        """Whether there is a row that goes on."""
        raise NotImplementedError

    def found(self, inputs: Inputs, state: Any) -> Found:
        """What there is at the end."""
        raise NotImplementedError

    @partial(jax.jit, static_argnums=0)
    def run(self, params: Any, inputs: Inputs) -> Found:
        """From the prompts to the end, on the device."""
        state = jax.lax.while_loop(
            partial(self.unfinished, inputs),
            partial(self.step, params, inputs),
            self.begin(params, inputs),
        )
        return self.found(inputs, state)
