"""The losses of masked language modelling on a small model: means over slots, and falling."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm.data.random import RowRandom
from flaxlm.losses import Readout
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.pairs import NextSentence
from flaxlm.step import make_init, make_train_step
from tests.lines import VOCAB, rows_of


def prepare(objective, rows):
    return objective.prepare(rows, RowRandom(0, rows.index), VOCAB)


class Bag(nn.Module):
    """The smallest model with the outputs: a token knows itself and the mean of its type."""

    @nn.compact
    def __call__(self, batch, *, train):
        table = self.param("table", nn.initializers.normal(0.1), (VOCAB.size, 16))
        x = table[batch["tokens"]]
        real = (batch["segments"] > 0)[..., None]
        means = [
            jnp.where(real & (batch["types"] == t)[..., None], x, 0).mean(axis=1) for t in (0, 1)
        ]
        hidden = nn.Dense(16)(x + means[0][:, None] + means[1][:, None])
        pooled = jnp.concatenate(means, axis=1)
        bias = self.param("bias", nn.initializers.zeros, (VOCAB.size,))
        return {
            "logits": Readout(hidden, table, bias, vocab=VOCAB.size, transposed=True),
            "pair_logits": nn.Dense(2)(jnp.tanh(nn.Dense(16)(pooled))),
        }


def test_both_terms_fall():
    objective = MaskedLM(slots=8, pairs=NextSentence())
    texts = [[[10 + r % 40] * 6, [10 + r % 40] * 6, [10 + r % 40] * 6] for r in range(64)]
    rows = rows_of(texts, objective.window(32))
    partner = rows_of([[[60 + r % 40] * 9] * 2 for r in range(64)], objective.window(32))
    batch = prepare(objective, dataclasses.replace(rows, partners=(partner,)))
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    tx = optax.adam(0.03)
    state = make_init(Bag(), tx, shapes, seed=0)()
    step = jax.jit(make_train_step(Bag(), objective, tx, seed=0))
    seen = []
    for _ in range(20):
        state, metrics = step(state, batch)
        del metrics["evidence"]
        seen.append({name: float(value) for name, value in metrics.items()})
    assert objective.terms.keys() == {"mlm", "pair", "pair_accuracy"}
    for name in ("mlm", "pair"):
        assert np.isfinite([m[name] for m in seen]).all()
        assert seen[-1][name] < 0.8 * seen[0][name], name
    assert seen[0]["loss"] == pytest.approx(seen[0]["mlm"] + seen[0]["pair"], rel=1e-5)
    assert seen[-1]["pair_accuracy"] > seen[0]["pair_accuracy"]


def test_terms_are_means_over_the_slots():
    objective = MaskedLM(slots=3, rate=0.3)
    batch = prepare(objective, rows_of([[[11, 12, 13, 14]], [[21]]], 6))
    hidden = jax.random.normal(jax.random.key(0), (2, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (4, VOCAB.size))

    def apply(batch, *, rng):
        return {"logits": Readout(hidden, kernel, vocab=VOCAB.size)}

    outputs = objective.forward(apply, batch, None)
    values = objective.terms["mlm"].values(outputs, batch)
    logits = jnp.take_along_axis(hidden @ kernel, batch["slots"][:, :, None], axis=1)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["slot_targets"])
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.array_equal(objective.predict(apply, batch), logits.argmax(axis=-1))
