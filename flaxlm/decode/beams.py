"""Beam search, as transformers' `generate` does it with num_beams: the same hypotheses, the same
order of comparing, the same moment of stopping.

In every step the best 2 K continuations of a prompt's K running hypotheses are looked at. Those
among the first K that end are finished and compete for the K places of the result; the K best that
do not end run on. Rows that have stopped stay as they are, whatever the others do.

`B` prompts, `K` hypotheses of each, `J` continuations looked at (2 K), `N` new tokens, `V`
vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxlm.decode import cache
from flaxlm.decode.scores import allowed
from flaxlm.decode.search import Found, Inputs, Search

_NONE = -1e9  # score of a hypothesis that is none


class State(NamedTuple):
    """Hypotheses at some moment.

    Attributes:
      text: of the running ones, [B * K, ...].
      made: new tokens of the running ones.
      running: [B, K] their log-likelihoods, best first.
      tokens: [B, K, N] of the finished ones.
      lengths: [B, K] of the finished ones.
      scores: [B, K] of the finished ones, best first.
      likelihoods: [B, K] of the finished ones.
      finished: [B, K] booleans: whether there is one.
      done: [B] booleans: prompts whose search has ended.
    """

    text: cache.Text
    made: jax.Array
    running: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    likelihoods: jax.Array
    finished: jax.Array
    done: jax.Array


class Beams(Search):
    """Beam search with settings.num_beams hypotheses."""

    def begin(self, params: Any, inputs: Inputs) -> State:
        logits_BV, text = cache.begin(self.model, params, inputs.prompts, self.room)
        beams = self.settings.num_beams
        shape = len(logits_BV), beams
        nothing = jnp.full(shape, _NONE)
        state = State(
            text.repeat(beams),
            jnp.zeros((), jnp.int32),
            nothing.at[:, 0].set(0.0),  # all are the same: only the first goes on
            jnp.zeros((*shape, self.room), jnp.int32),
            jnp.zeros(shape, jnp.int32),
            nothing,
            nothing,
            jnp.zeros(shape, bool),
            ~inputs.real,
        )
        return self._add(inputs, state, jnp.repeat(logits_BV, beams, axis=0))

    def step(self, params: Any, inputs: Inputs, state: State) -> State:
        logits, text = cache.go_on(self.model, params, state.text)
        return self._add(inputs, state._replace(text=text), logits)

    def unfinished(self, inputs: Inputs, state: State) -> jax.Array:
        return ~state.done.all()

    def found(self, inputs: Inputs, state: State) -> Found:
        every = state.tokens, state.lengths, state.likelihoods, state.scores
        return Found(*(x[:, 0] for x in every))

    def _add(self, inputs: Inputs, state: State, logits: jax.Array) -> State:
        rows, beams = state.running.shape
        vocab, made = logits.shape[1], state.made + 1
        log_p = allowed(
            jax.nn.log_softmax(logits, axis=-1),
            state.text,
            settings=self.settings,
            made=state.made,
            forced_BN=jnp.repeat(inputs.forced, beams, axis=0),
            eos=self.eos,
        )
        total = state.running[..., None] + log_p.reshape(rows, beams, vocab)
        likelihood_BJ, at_BJ = jax.lax.top_k(total.reshape(rows, -1), 2 * beams)
        beam_BJ, token_BJ = at_BJ // vocab, (at_BJ % vocab).astype(jnp.int32)
        ends_BJ = jnp.broadcast_to(made >= inputs.limit, at_BJ.shape)
        if self.eos is not None:
            ends_BJ |= token_BJ == self.eos
        finished = self._finished(state, likelihood_BJ, beam_BJ, token_BJ, ends_BJ)
        # The best that do not end run on.
        running, pick_BK = jax.lax.top_k(likelihood_BJ + ends_BJ * _NONE, beams)
        beam_BK = jnp.take_along_axis(beam_BJ, pick_BK, axis=1)
        token_BK = jnp.take_along_axis(token_BJ, pick_BK, axis=1)
        from_rows = (jnp.arange(rows)[:, None] * beams + beam_BK).reshape(-1)
        text = state.text.take(from_rows).add(token_BK.reshape(-1))
        new = finished._replace(text=text, made=made, running=running)
        new = new._replace(done=state.done | self._ended(inputs, new, ends_BJ))
        return _where(state.done, state, new)

    def _finished(self, state, likelihood_BJ, beam_BJ, token_BJ, ends_BJ) -> State:
        """With the best of what was finished before and what ends now."""
        rows, beams = state.running.shape
        made = state.made + 1
        counts_BJ = ends_BJ & (jnp.arange(2 * beams) < beams)[None]
        score_BJ = likelihood_BJ / made.astype(jnp.float32) ** self.settings.length_penalty
        score_BJ = score_BJ + ~counts_BJ * _NONE
        text_BKN = state.text.tokens[:, -self.room :].reshape(rows, beams, -1)
        text_BJN = jnp.take_along_axis(text_BKN, beam_BJ[..., None], axis=1)
        here_N = jnp.arange(self.room) == state.made
        text_BJN = jnp.where(here_N[None, None], token_BJ[..., None], text_BJN)
        length_BJ = jnp.broadcast_to(made, beam_BJ.shape)
        scores, pick_BK = jax.lax.top_k(jnp.concatenate([state.scores, score_BJ], axis=1), beams)

        def best(before, now):
            every = jnp.concatenate([before, now], axis=1)
            pick = pick_BK.reshape(pick_BK.shape + (1,) * (every.ndim - 2))
            return jnp.take_along_axis(every, pick, axis=1)

        return state._replace(
            tokens=best(state.tokens, text_BJN),
            lengths=best(state.lengths, length_BJ),
            scores=scores,
            likelihoods=best(state.likelihoods, likelihood_BJ),
            finished=best(state.finished, counts_BJ),
        )

    def _ended(self, inputs: Inputs, state: State, ends_BJ) -> jax.Array:
        """[B]: whether going on cannot change the result, as the settings see it."""
        settings = self.settings
        made = state.made
        # A likelihood falls with every token, but its share per token may rise.
        hopeful = settings.early_stopping == "never" and settings.length_penalty > 0
        length = (inputs.limit if hopeful else made).astype(jnp.float32)
        reachable_B = state.running[:, 0] / length**settings.length_penalty
        worst_B = jnp.where(state.finished.all(axis=1), state.scores.min(axis=1), _NONE)
        ended_B = (reachable_B <= worst_B) | ends_BJ.all(axis=1)
        if settings.early_stopping is True:
            ended_B |= state.finished.all(axis=1)
        return ended_B


def _where(done_B, old: State, new: State) -> State:
    """The new state but for the rows that are done. Their running hypotheses may change: nobody
    reads them.
    """

    def choose(before, after):
        return jnp.where(done_B.reshape(-1, *(1,) * (after.ndim - 1)), before, after)

    kept = ("running", "tokens", "lengths", "scores", "likelihoods", "finished", "done")
    return new._replace(**{name: choose(getattr(old, name), getattr(new, name)) for name in kept})
