"""ELECTRA: equal to the published nets, and trained together as published."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.convert import electra as converter
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError
from flaxlm.models import bert, electra
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.replaced_token import ReplacedToken, put
from flaxlm.step import Applied
from tests.descendants import CASES, check, forward, golden, init, load, parameters, read

NETS = {
    "discriminator": (electra.Discriminator, "ElectraForPreTraining"),
    "generator": (electra.Generator, "ElectraForMaskedLM"),
}
TINY = electra.SIZES["tiny"]


def size_of(case):
    return bert.Size(**CASES.ELECTRA[case], **CASES.DROPOUT)


@pytest.mark.parametrize("case", CASES.ELECTRA)
@pytest.mark.parametrize("net", NETS)
def test_equals_the_published_nets(net, case):
    model = NETS[net][0](size_of(case))
    tensors, expected = golden(f"electra_{net}", case, converter.ALIASES)
    params = read(converter, model, tensors)
    assert net == "discriminator" or model.activation is bert.gelu_erf
    batch = CASES.inputs(CASES.ELECTRA[case], seed=ord(case))
    check(forward(model, params, batch), expected, batch)


@pytest.mark.parametrize("net", NETS)
def test_equals_transformers_as_installed(net):
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    pytest.importorskip("transformers", reason="needs the parity extra: transformers")
    make = load("make_electra")
    numbers = dict(depth=2, width=15, mlp=31, heads=3, vocab=97, length=23, embed_width=11)
    theirs = make.electra(numbers, NETS[net][1])
    batch = CASES.inputs(numbers, seed=7)
    model = NETS[net][0](bert.Size(**numbers, **CASES.DROPOUT))
    config = converter.config_of(model)
    assert converter.model_of(theirs.config.to_dict() | {"architectures": [NETS[net][1]]}).size == (
        bert.Size(**numbers)
    )
    assert config["embedding_size"] == 11
    params = read(converter, model, {k: v.numpy() for k, v in theirs.state_dict().items()})
    check(forward(model, params, batch), make.run(theirs, batch, types=True), batch, every=1)


@pytest.mark.parametrize("name", electra.PARAMETERS)
def test_parameters_are_the_published_number(name):
    size = electra.SIZES[name]
    assert parameters(electra.Model(size), size.vocab) == electra.PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("small", 13_549_057, 4_620_026),
        ("small_released", 13_549_057, 13_546_682),
        ("base", 109_483_009, 33_740_602),
        ("large", 335_142_913, 51_295_290),
    ],
)
def test_parameters_of_one_net(name, discriminator, generator):
    size = electra.SIZES[name]
    assert parameters(electra.Discriminator(size.discriminator), size.vocab) == discriminator
    assert parameters(electra.Generator(size.generator), size.vocab) == generator


@pytest.fixture(scope="module")
def tiny():
    """Model, parameters, a batch of replaced token detection."""
    model, objective = electra.Model(TINY), ReplacedToken(masked=MaskedLM(slots=8))
    ids = np.random.default_rng(0).integers(7, TINY.vocab, (6, objective.window(32)))
    rows = Rows.of(ids.astype(np.int32))
    vocab = Vocabulary(size=TINY.vocab, sentinels=0).blank()
    batch = objective.prepare(rows, RowRandom(0, rows.index), vocab)
    return model, init(model, batch)[0], objective, batch


def loss(model, objective, batch, name, key=1):
    def function(params):
        out = objective.forward(Applied(model, params), batch, jax.random.key(key))
        term = objective.terms[name]
        return (term.values(out, batch) * batch[term.weights]).sum()

    return function


def test_no_gradient_passes_from_the_discriminator_to_the_generator(tiny):
    model, params, objective, batch = tiny
    grads = {
        name: jax.jit(jax.grad(loss(model, objective, batch, name)))(params)
        for name in ("mlm", "replaced")
    }
    size = {
        (term, part): sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(grad[part]))
        for term, grad in grads.items()
        for part in ("generator", "discriminator", "embed")
    }
    assert size["replaced", "generator"] == 0 and size["mlm", "discriminator"] == 0
    assert all(
        size[pair] > 0
        for pair in (
            ("mlm", "generator"),
            ("replaced", "discriminator"),
            ("mlm", "embed"),
            ("replaced", "embed"),
        )
    )


def test_the_shared_tables_learn_from_both_losses(tiny):
    model, params, objective, batch = tiny

    def both(params):
        return loss(model, objective, batch, "mlm")(params) + 50 * loss(
            model, objective, batch, "replaced"
        )(params)

    table = lambda grad: grad["embed"]["tokens"]["table"]
    mlm, replaced, summed = (
        table(jax.jit(jax.grad(function))(params))
        for function in (
            loss(model, objective, batch, "mlm"),
            loss(model, objective, batch, "replaced"),
            both,
        )
    )
    np.testing.assert_allclose(summed, mlm + 50 * replaced, atol=1e-4)


def test_labels_mark_what_differs_from_the_text(tiny):
    model, params, objective, batch = tiny
    out = jax.jit(
        lambda params: objective.forward(Applied(model, params), batch, jax.random.key(3))
    )(params)
    out = {name: np.asarray(out[name]) for name in ("corrupted", "labels")}
    original = np.asarray(
        put(batch["tokens"], batch["slots"], batch["slot_targets"], batch["slot_weights"] > 0)
    )
    np.testing.assert_array_equal(out["labels"], out["corrupted"] != original)
    slots = np.zeros(original.shape, bool)
    rows = np.arange(len(slots))[:, None]
    slots[rows, batch["slots"]] = batch["slot_weights"] > 0
    assert (out["corrupted"] == original)[~slots].all(), "only slots are replaced"
    # A fresh generator over 500 ids replaces nearly every slot; [CLS] at place 0 is never one.
    assert out["labels"][slots].mean() > 0.9 and not slots[:, 0].any()
    np.testing.assert_array_equal(batch["weights"], batch["segments"] > 0)


def test_a_draw_that_is_the_original_counts_as_not_replaced(tiny):
    _, _, objective, batch = tiny

    class Knowing:
        """A generator that is certain of one id."""

        frozen: ClassVar[dict] = {}

        def __init__(self, ids):
            self.ids = ids

        def __call__(self, batch, *, rng, method=None, layers=False):
            from flaxlm.losses import Readout

            if method == "generate":
                hidden = 100.0 * jax.nn.one_hot(self.ids, TINY.vocab)
                return {"logits": Readout(hidden, jnp.eye(TINY.vocab), vocab=TINY.vocab)}
            return {"replaced": jnp.where(batch["tokens"] == 9, 5.0, -5.0)}

    original = put(
        jnp.asarray(batch["tokens"]), batch["slots"], batch["slot_targets"],
        batch["slot_weights"] > 0,
    )  # fmt: skip
    out = objective.forward(Knowing(original), batch, jax.random.key(0))
    assert not np.asarray(out["labels"]).any()
    out = objective.forward(Knowing(jnp.full_like(original, 9)), batch, jax.random.key(0))
    used = batch["slot_weights"].sum()
    assert float(out["labels"].sum()) == used - (batch["slot_targets"] == 9).sum()
    # The judge above says 9 is replaced: right wherever the text has no 9 of its own.
    wrong = (np.asarray(original) == 9).sum()
    assert float((out["replaced_hit"] * batch["weights"]).sum()) == batch["weights"].sum() - wrong


def test_draws_differ_from_step_to_step_but_not_in_evaluation(tiny):
    model, params, objective, batch = tiny

    def corrupted(key):
        rng = None if key is None else jax.random.key(key)
        return np.asarray(objective.forward(Applied(model, params), batch, rng)["corrupted"])

    assert (corrupted(0) != corrupted(1)).any()
    np.testing.assert_array_equal(corrupted(None), corrupted(None))


def test_the_two_nets_of_a_pretrained_pair_are_taken_apart(tiny):
    model, params, _, batch = tiny
    whole = forward(model, params, batch)
    parts = converter.parts(model, params)
    for name, output in (("discriminator", "replaced"), ("generator", "logits")):
        part, taken = parts[name]
        np.testing.assert_array_equal(forward(part, taken, batch)[output], whole[output])
        assert converter.model_of(converter.config_of(part)).size == part.size
    with pytest.raises(ConfigError, match="--part discriminator"):
        converter.config_of(model)


def test_padding_changes_nothing(tiny):
    model, params, _, batch = tiny
    short = {name: batch[name].copy() for name in ("tokens", "segments", "positions", "types")}
    short["segments"][:, 20:] = 0
    cut = {name: value[:, :20] for name, value in short.items()}
    for name in ("replaced", "logits"):
        np.testing.assert_allclose(
            forward(model, params, short)[name][:, :20],
            forward(model, params, cut)[name],
            atol=2e-5,
        )


@pytest.mark.parametrize("change", [dict(generator_heads=3), dict(heads=5), dict(embed_width=0)])
def test_impossible_sizes_are_refused(change):
    import dataclasses

    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(TINY, **change)
