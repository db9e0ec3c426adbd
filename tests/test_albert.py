"""ALBERT: equal to the published model where that shares all; the paper's other ways of sharing."""

import jax
import numpy as np
import pytest

from flaxlm.convert import albert as convert
from flaxlm.errors import ConfigError
from flaxlm.models import albert, bert
from flaxlm.nn.compute import Compute
from flaxlm.step import Applied
from tests import encoders

TINY = albert.SIZES["tiny"]
DROPOUT = albert.Size(
    3, 32, 48, 4, vocab=256, length=16, embed_width=12, dropout=0.2, attention_dropout=0.3
)
SHARING = {
    "all": albert.ALL, "attention": albert.ATTENTION, "mlp": albert.MLP, "none": albert.NONE
}  # fmt: skip
HEADS = ("head", "pair")


@pytest.mark.parametrize("case", encoders.cases("albert"))
def test_equals_the_published_model(case):
    tensors, _, back = encoders.check_golden(convert, case)
    if case == "albert_bare":  # transformers' bare model has no prefix
        back = {name.removeprefix(convert.PREFIX): array for name, array in back.items()}
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("case", ["albert_c", "albert_masked"])
def test_equals_transformers_as_installed(case, tmp_path):
    encoders.check_live(convert, encoders.CASES.CONFIGS[case] | {"vocab_size": 99}, tmp_path)


def copies(params, sharing, depth):
    """The parameters of the model that shares nothing and computes the same."""
    layers = {
        name: jax.tree.map(lambda x: np.broadcast_to(x, (depth, *x.shape)), part)
        if name in sharing
        else part
        for name, part in params["layers"].items()
    }
    return params | {"layers": layers}


@pytest.mark.parametrize("name", SHARING)
def test_sharing_is_a_stack_of_copies(name):
    """Loss, dropout included; and the gradient is the sum over the copies."""
    sharing = SHARING[name]
    model, apart = albert.Model(DROPOUT, sharing=sharing), albert.Model(DROPOUT, sharing=())
    batch = encoders.make_batch(length=8, vocab=256)
    params, axes = encoders.init(model, batch)
    for part in albert.ALL:
        leaf = "scale" if "norm" in part else {"attention": "query", "mlp": "in"}[part]
        assert (axes[f"layers/{part}/{leaf}"][0] == "layers") == (part not in sharing)
    value, gradient = jax.jit(encoders.loss_and_gradient(model))(params, batch)
    expected, theirs = jax.jit(encoders.loss_and_gradient(apart))(
        copies(params, sharing, DROPOUT.depth), batch
    )
    for part in sharing:
        theirs["layers"][part] = jax.tree.map(lambda x: x.sum(0), theirs["layers"][part])
    encoders.assert_same((value, gradient), (expected, theirs))


@pytest.mark.parametrize("name", SHARING)
def test_how_it_is_computed_changes_nothing(name):
    encoders.check_computes(
        albert.Model(DROPOUT, sharing=SHARING[name]), Compute(scan=False), Compute(remat="full")
    )


def test_layers_draw_their_own_dropout():
    """A layer that adds a constant: only its dropout makes it differ from the next."""
    model = albert.MaskedLanguageModel(DROPOUT)
    params, _ = encoders.init(model)
    batch, zero = encoders.make_batch(vocab=256), jax.tree.map(lambda x: x * 0, params["layers"])
    zero["attention_norm"]["scale"] += 1.0
    zero["mlp_norm"]["scale"] += 1.0
    zero["mlp"]["out_bias"] += 1.0 + np.arange(32)
    out = Applied(model, params | {"layers": zero})(batch, rng=jax.random.key(0), layers=True)
    hidden = np.asarray(out["layers/hidden"])
    assert not np.allclose(hidden[1] - hidden[0], hidden[2] - hidden[1], atol=1e-2)


# The paper's table 4, of base; with pooler and without.
COUNTS = {
    ("all", 0): (31_114_752, 30_524_160),
    ("attention", 0): (83_078_400, 82_487_808),
    ("mlp", 0): (57_117_696, 56_527_104),
    ("none", 0): (109_081_344, 108_490_752),
    ("all", 128): (11_683_584, 11_092_992),
    ("attention", 128): (63_647_232, 63_056_640),
    ("mlp", 128): (37_686_528, 37_095_936),
    ("none", 128): (89_650_176, 89_059_584),
}


@pytest.mark.parametrize("name, embed_width", COUNTS)
def test_parameters_of_every_way_of_sharing(name, embed_width):
    size = albert.Size(12, 768, 3072, 12, embed_width=embed_width)
    model = albert.Model(size, sharing=SHARING[name])
    found = (
        encoders.count(model, without=HEADS),
        encoders.count(model, without=(*HEADS, "pooler")),
    )
    assert found == COUNTS[name, embed_width]


WITH_HEADS = {  # of AlbertForPreTraining and AlbertForMaskedLM
    "base": (11_813_810, 11_221_680),
    "large": (17_847_474, 16_795_824),
    "xlarge": (59_021_490, 54_821_040),
    "xxlarge": (223_158_450, 206_368_944),
}


@pytest.mark.parametrize("name", albert.PARAMETERS)
def test_published_parameter_counts(name):
    size = albert.SIZES[name]
    assert encoders.count(albert.Model(size), without=HEADS) == albert.PARAMETERS[name]
    assert encoders.count(albert.Encoder(size)) == albert.PARAMETERS[name]
    masked = encoders.count(albert.MaskedLanguageModel(size))
    expected = WITH_HEADS[name.removesuffix("_v2")]
    assert (encoders.count(albert.Model(size)), masked) == expected


def test_sizes_are_the_published_ones():
    assert albert.PARAMETERS.keys() == albert.SIZES.keys() - {"tiny"}


def test_properties():
    model = albert.Model(TINY)
    params, _ = encoders.init(model)
    out = encoders.forward(model, params, encoders.make_batch())
    assert {name: array.shape for name, array in out.items()} == dict(
        logits=(2, 12, 512), hidden=(2, 12, 48), embedded=(2, 12, 48), pooled=(2, 48),
        pair_logits=(2, 2),
    )  # fmt: skip
    assert model.activation is bert.gelu_tanh and model.longest == 64
    encoders.check_padding(model)
    encoders.check_packed(model)
    query = params["layers"]["attention"]["query"]
    assert query.shape == (48, 48) and abs(np.std(query) / 0.0176 - 1) < 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_groups": 2}, "num_hidden_groups=2"),
        ({"inner_group_num": 2}, "inner_group_num=2"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"architectures": ["AlbertForCausalLM"]}, "AlbertForCausalLM"),
    ],
)
def test_reading_refuses_what_does_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        convert.model_of(encoders.CASES.CONFIGS["albert_a"] | change)


@pytest.mark.parametrize(
    "model, message",
    [
        (albert.Model(TINY, sharing=albert.MLP), "model.sharing is mlp"),
        (albert.Model(TINY, sharing=()), "model.sharing is nothing"),
        (albert.Model(albert.Size(1, 8, 8, 1, embed_width=0)), "embed_width=0"),
    ],
)
def test_writing_refuses_what_transformers_lacks(model, message):
    with pytest.raises(ConfigError, match=message):
        convert.config_of(model)


def test_unknown_parts_are_refused():
    with pytest.raises(ConfigError, match="did you mean mlp"):
        encoders.shapes(albert.Model(TINY, sharing=("mpl",)))
