"""Position encodings: equal to the published ones, and any of them goes with a family."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import named
from flaxlm.models import gpt2
from flaxlm.nn.compute import Compute
from flaxlm.nn.norm import LayerNorm
from flaxlm.nn.positions import (
    Alibi,
    Learned,
    Position,
    RelativeBias,
    Rotary,
    Sinusoidal,
    slopes,
)
from tests.gpts import PARITY, changed, forward, init, load, loss, loud, make_batch

CASES = load(PARITY / "positions_cases.py")
TINY = gpt2.SIZES["tiny"]
ENCODINGS = {
    "none": Position(),
    "learned": Learned(40),
    "sinusoidal": Sinusoidal(),
    "halves": Sinusoidal(interleaved=False),
    "rotary": Rotary(),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(share=0.25),
    "alibi": Alibi(),
    "t5": RelativeBias(count=16, max_distance=20),
}
ROTARY = {
    "llama": Rotary(),
    "neox": Rotary(share=CASES.SHARES["neox"]),
    "gptj": Rotary(interleaved=True, share=CASES.SHARES["gptj"]),
    "roformer": Rotary(interleaved=True),
}
MODELS = {"neox": Rotary(share=0.25)}  # and "bloom", below


class NormedAlibi(Alibi):
    """BLOOM's: ALiBi, and a norm of the embeddings."""

    @nn.compact
    def embed(self, x_BLD, positions_BL):
        return LayerNorm(1e-5, name="norm")(x_BLD)


MODELS["bloom"] = NormedAlibi()


def stored():
    return dict(np.load(PARITY / "positions.npz"))


@functools.cache
def installed():
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    sys.path.insert(0, str(PARITY))
    try:
        return load(PARITY / "make_positions.py").golden()
    finally:
        sys.path.remove(str(PARITY))


@pytest.fixture(params=["stored", "as_installed"])
def golden(request):
    return stored() if request.param == "stored" else installed()


def counted(rows, length):
    return np.tile(np.arange(length, dtype=np.int32), (rows, 1))


@pytest.mark.parametrize("family", ROTARY)
def test_rotary_equals(golden, family):
    x = CASES.values(f"turned {family}", CASES.HEADS)
    rotation = ROTARY[family].rotation(counted(*x.shape[:2]), x.shape[-1])
    np.testing.assert_allclose(rotation(jnp.asarray(x)), golden[f"turned/{family}"], atol=2e-5)


@pytest.mark.parametrize("family", CASES.SINUSOIDS)
def test_sinusoids_equal(golden, family):
    length, width = CASES.SINUSOIDS[family]
    encoding = Sinusoidal(interleaved=family == "distilbert")
    found = encoding.embed(jnp.zeros((1, length, width)), counted(1, length))[0]
    np.testing.assert_allclose(found, golden[f"sinusoids/{family}"], atol=2e-5)


@pytest.mark.parametrize("heads", CASES.SLOPES)
def test_alibi_equals(golden, heads):
    theirs = golden[f"alibi/{heads}"]  # rises with the key; softmax drops what a query adds
    np.testing.assert_allclose(slopes(heads), theirs[:, 1], rtol=1e-6)
    ours = np.asarray(Alibi().bias(heads, 9, 9))[0]
    for query in range(9):
        found, expected = ours[:, query, : query + 1], theirs[:, : query + 1]
        np.testing.assert_allclose(found, expected - expected[:, -1:], atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_a_whole_model_equals(golden, family):
    numbers = CASES.MODELS[family]
    size = gpt2.Size(**numbers, head_dim=numbers["width"] // numbers["heads"], dropout=0.0)
    start = f"shape/{family}/"
    tensors = {
        name.removeprefix(start): CASES.tensor(name.removeprefix(start), tuple(shape))
        for name, shape in golden.items()
        if name.startswith(start)
    }
    model, batch = gpt2.Model(size, positions=MODELS[family]), CASES.inputs(size.vocab)
    found = forward(model, CASES.params(family, tensors, numbers), batch)["hidden"]
    where = batch["segments"] > 0
    np.testing.assert_allclose(found[where], golden[f"hidden/{family}"][where], atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoding", ROTARY.values(), ids=ROTARY)
def test_rotated_products_depend_on_the_offset_alone(encoding):
    q, k = CASES.values("q", (1, 1, 1, 16)), CASES.values("k", (1, 1, 1, 16))

    def product(query, key):
        at = (encoding.rotation(np.array([[p]], np.int32), 16) for p in (query, key))
        turn_q, turn_k = at
        return float((turn_q(jnp.asarray(q)) * turn_k(jnp.asarray(k))).sum())

    for offset in (0, 1, 5):
        same = [product(start + offset, start) for start in (0, 3, 100)]
        np.testing.assert_allclose(same, same[0], atol=1e-3)
    assert abs(product(1, 0) - product(5, 0)) > 1e-2


@pytest.mark.parametrize(
    "encoding",
    [Alibi(), RelativeBias(16, 20), RelativeBias(16, 20, two_sided=True)],
    ids=["alibi", "t5", "t5 two-sided"],
)
def test_a_bias_is_shift_invariant(encoding):
    params = encoding.init(jax.random.key(0), 3, 30, 40, method="bias")
    bias = np.asarray(encoding.apply(named.unbox(params), 3, 30, 40, method="bias"))
    assert bias.shape == (1, 3, 30, 40) and bias.dtype == np.float32
    assert np.array_equal(bias[:, :, 1:, 1:], bias[:, :, :-1, :-1])
    assert len(np.unique(bias[0, 0])) > 10


@pytest.fixture(scope="module")
def tiny():
    made = {}

    def get(name):
        if name not in made:
            model = gpt2.Model(TINY, positions=ENCODINGS[name])
            made[name] = model, loud(init(model, make_batch())[0])
        return made[name]

    return get


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_past_does_not_see_the_future(tiny, name):
    model, params = tiny(name)
    batch = make_batch(length=30)
    before = forward(model, params, batch)["hidden"]
    after = forward(model, params, changed(batch, 20))["hidden"]
    assert np.array_equal(before[:, :20], after[:, :20])
    assert (before != after)[:, 20:].any(axis=-1).all()


@pytest.mark.parametrize("name", ENCODINGS)
def test_padding_and_neighbours_change_nothing(tiny, name):
    model, params = tiny(name)
    one, two = make_batch(length=14, seed=1), make_batch(length=11, seed=2)
    two["segments"] *= 2
    packed = {x: np.concatenate([one[x], two[x]], axis=1) for x in one}
    padded = {x: np.pad(array, ((0, 0), (0, 5))) for x, array in packed.items()}
    padded["tokens"][:, 25:] = 3
    found = forward(model, params, padded)["hidden"]
    for batch, place in ((one, slice(0, 14)), (two, slice(14, 25))):
        expected = forward(model, params, batch)["hidden"]
        np.testing.assert_allclose(found[:, place], expected, atol=1e-4)


@pytest.mark.parametrize("name", ENCODINGS)
def test_order_matters_to_all_but_none(tiny, name):
    """The last position of a row whose other tokens change places."""
    model, params = tiny(name)
    batch = make_batch(length=30)
    turned = batch | {"tokens": batch["tokens"].copy()}
    turned["tokens"][:, :29] = turned["tokens"][:, 28::-1]
    one = gpt2.Model(gpt2.Size(1, 64, 128, 4, head_dim=16, vocab=512), positions=model.positions)
    params = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    before, after = (forward(one, params, x)["hidden"][:, -1] for x in (batch, turned))
    assert (np.abs(before - after).max() > 1e-3) == (name != "none")


@pytest.mark.parametrize("compute", [Compute(scan=False), Compute(remat="full")], ids=repr)
@pytest.mark.parametrize("name", ["rotary", "alibi", "t5", "sinusoidal"])
def test_how_it_is_computed_changes_nothing(tiny, name, compute):
    model, params = tiny(name)
    batch = make_batch()
    expected, found = (
        jax.jit(jax.value_and_grad(lambda p, m=m: loss(m, batch, p)))(params)
        for m in (model, model.clone(compute=compute))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1e-2, np.abs(b).max()))


def test_the_longest_row():
    lengths = {name: gpt2.Model(TINY, positions=e).longest for name, e in ENCODINGS.items()}
    assert {name for name, length in lengths.items() if length} == {"learned"}
    assert gpt2.Model(TINY, positions=Learned(40, offset=2)).longest == 38
