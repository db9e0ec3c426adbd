"""Cross-entropy against the textbook formula, chunked and whole, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import losses, sharding


def readout(vocab=37, width=40, transposed=False, bias=True):
    random = np.random.default_rng(1)
    hidden = jnp.array(random.normal(size=(4, 6, 8)), jnp.float32)
    kernel = jnp.array(random.normal(size=(width, 8) if transposed else (8, width)), jnp.float32)
    offset = jnp.array(random.normal(size=(width,)), jnp.float32) if bias else None
    return losses.Readout(hidden, kernel, offset, vocab=vocab, transposed=transposed)


def textbook(head, targets):
    kernel = head.kernel.T if head.transposed else head.kernel
    logits = jnp.einsum("bld,dv->blv", head.hidden, kernel)
    if head.bias is not None:
        logits = logits + head.bias.reshape(1, 1, -1)
    log_p = jax.nn.log_softmax(logits[..., : head.vocab])
    picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -picked, jax.nn.logsumexp(logits[..., : head.vocab], axis=-1)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 4 * 2 * 40, 2**30])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(monkeypatch, chunk_bytes, transposed, bias):
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk_bytes)
    head = readout(transposed=transposed, bias=bias)
    targets = jnp.array(np.random.default_rng(2).integers(0, 37, (4, 6)), jnp.int32)
    weights = jnp.array(np.random.default_rng(3).random((4, 6)), jnp.float32)

    def score(function, hidden, kernel):
        nll, log_z = function(head.replace(hidden=hidden, kernel=kernel), targets)
        return (weights * nll + 0.1 * log_z**2).sum(), (nll, log_z)

    found, expected = (
        jax.value_and_grad(lambda h, k, f=f: score(f, h, k), argnums=(0, 1), has_aux=True)(
            head.hidden, head.kernel
        )
        for f in (losses.cross_entropy, textbook)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected
    )


def test_logits_of_padding_entries_have_no_mass():
    head = readout()
    probabilities = jax.nn.softmax(head.logits())
    assert probabilities.shape[-1] == 40
    assert float(probabilities[..., 37:].max()) == 0.0


def test_chunks_never_hold_all_logits(monkeypatch):
    """The compiled gradient of a chunked loss needs less memory than the logits it scores."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**18)
    hidden, kernel = jnp.zeros((4, 256, 16)), jnp.zeros((16, 4096))
    targets = jnp.zeros((4, 256), jnp.int32)

    def loss(hidden, kernel):
        return losses.cross_entropy(losses.Readout(hidden, kernel, vocab=4096), targets)[0].sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 256 * 4096 * 4 / 2


@pytest.mark.parametrize("mesh", [sharding.Mesh(data=2, sequence=2, tensor=2)])
def test_sharded_chunks_agree(monkeypatch, mesh):
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 2 * 20)
    head = readout(bias=False)
    targets = jnp.array(np.random.default_rng(2).integers(0, 37, (4, 6)), jnp.int32)
    expected = textbook(head, targets)
    with sharding.using(sharding.make_layout(mesh)):
        found = jax.jit(losses.cross_entropy)(head, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
