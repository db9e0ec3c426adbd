"""One token after the other: the most likely one, or one that is drawn; several answers drawn and
the best of them kept (sample-and-rank).

A row's draws depend on its key and its own text alone. `B` prompts, `R` rows: the candidates of a
prompt next to each other; `N` new tokens, `V` vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxlm.decode import cache
from flaxlm.decode.scores import allowed, warped
from flaxlm.decode.search import Found, Inputs, Search


class State(NamedTuple):
    """Rows of text at some moment.

    Attributes:
      text: prompts and new tokens.
      made: new tokens, the same number in every row.
      lengths: [R] new tokens up to the end of text.
      likelihoods: [R] sums of their log-probabilities.
      done: [R] booleans.
    """

    text: cache.Text
    made: jax.Array
    lengths: jax.Array
    likelihoods: jax.Array
    done: jax.Array


class Sampling(Search):
    """Greedy where settings.sample is False."""

    @partial(jax.jit, static_argnums=0)
    def begin(self, params: Any, inputs: Inputs) -> State:
        logits_BV, text = cache.begin(self.model, params, inputs.prompts, self.room)
        times = self.settings.candidates
        rows = len(inputs.real) * times
        state = State(
            text.repeat(times) if times > 1 else text,
            jnp.zeros((), jnp.int32),
            jnp.zeros(rows, jnp.int32),
            jnp.zeros(rows),
            jnp.repeat(~inputs.real, times),
        )
        return self._add(inputs, state, jnp.repeat(logits_BV, times, axis=0))

    @partial(jax.jit, static_argnums=0)
    def step(self, params: Any, inputs: Inputs, state: State) -> State:
        logits_RV, text = cache.go_on(self.model, params, state.text)
        return self._add(inputs, state._replace(text=text), logits_RV)

    def unfinished(self, inputs: Inputs, state: State) -> jax.Array:
        return ~state.done.all()

    def found(self, inputs: Inputs, state: State) -> Found:
        scores_R = state.likelihoods / state.lengths**self.settings.length_penalty
        by_prompt = len(inputs.real), self.settings.candidates
        best_B = jnp.argmax(scores_R.reshape(by_prompt), axis=1)
        rows_B = jnp.arange(by_prompt[0]) * by_prompt[1] + best_B
        tokens_RN = state.text.tokens[:, -self.room :]
        every = tokens_RN, state.lengths, state.likelihoods, scores_R
        return Found(*(jnp.take(x, rows_B, axis=0) for x in every))

    def _add(self, inputs: Inputs, state: State, logits_RV: jax.Array) -> State:
        times = self.settings.candidates
        scores_RV = allowed(
            logits_RV,
            state.text,
            settings=self.settings,
            made=state.made,
            forced_BN=jnp.repeat(inputs.forced, times, axis=0),
            eos=self.eos,
        )
        if self.settings.sample:
            keys_R = _each(inputs.keys, times, state.made)
            drawn = warped(scores_RV, settings=self.settings)
            chosen_R = jax.vmap(jax.random.categorical)(keys_R, drawn)
        else:
            chosen_R = jnp.argmax(scores_RV, axis=-1)
        chosen_R = chosen_R.astype(jnp.int32)
        found_R1 = jnp.take_along_axis(logits_RV, chosen_R[:, None], axis=1)
        gained_R = found_R1[:, 0] - jax.nn.logsumexp(logits_RV, axis=1)
        made = state.made + 1
        done = state.done | (made >= inputs.limit)
        if self.eos is not None:
            done |= chosen_R == self.eos
        return State(
            state.text.add(chosen_R),
            made,
            jnp.where(state.done, state.lengths, made),
            state.likelihoods + jnp.where(state.done, 0.0, gained_R),
            done,
        )


def _each(keys_B, times: int, made):
    """[R] keys: of every candidate of every prompt, for this token."""

    def one(key):
        candidates = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(times))
        return jax.vmap(lambda key: jax.random.fold_in(key, made))(candidates)

    return jax.vmap(one)(keys_B).reshape(-1)
