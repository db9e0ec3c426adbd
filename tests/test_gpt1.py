"""GPT-1 alone: what its dropout of the embeddings does. The rest is in test_gpt.py."""

import jax
import numpy as np

from flaxlm.models import gpt1
from tests.gpts import init, make_batch

SIZE = gpt1.Size(1, 32, 64, 2, head_dim=16, vocab=64, positions=16, dropout=0.3)


def test_dropout_acts_on_the_tables():
    model, batch = gpt1.Model(SIZE), make_batch(vocab=64)
    params, _ = init(model, batch)

    def table(key):
        rngs = {"dropout": jax.random.key(key)}
        out = model.apply({"params": params}, batch, train=True, rngs=rngs)
        return np.asarray(out["logits"].kernel)

    once, again, other = table(0), table(0), table(1)
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert 0.25 < (once[:64] == 0).mean() < 0.35
    kept = once != 0
    np.testing.assert_allclose(
        once[kept], np.asarray(params["embed"]["table"])[kept] / 0.7, rtol=1e-6
    )


def test_a_dropped_element_is_dropped_wherever_its_token_stands():
    """One token everywhere and no positions: without any other dropout all states are equal."""
    model, batch = gpt1.Model(SIZE), make_batch(vocab=64)
    batch["tokens"][:] = 7
    params, _ = init(model, batch)
    params["positions"]["table"] *= 0
    params["layers"] = jax.tree.map(lambda x: x * 0, params["layers"])
    params["layers"]["mlp_norm"]["scale"] += 1
    params["layers"]["attention_norm"]["scale"] += 1
    rngs = {"dropout": jax.random.key(0)}
    out = model.apply({"params": params}, batch, train=True, rngs=rngs)["hidden"]
    np.testing.assert_allclose(out, np.broadcast_to(out[:1, :1], out.shape), atol=1e-6)
