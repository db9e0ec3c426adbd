"""RoBERTa: equal to the published model; what it has in common with BERT is tested there."""

import numpy as np
import pytest

from flaxlm.convert import roberta as convert
from flaxlm.convert.table import write
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.models import bert, roberta
from flaxlm.nn.compute import Compute
from tests import encoders

TINY = roberta.SIZES["tiny"]
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TYPES = "roberta.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize("case", encoders.cases("roberta"))
def test_equals_the_published_model(case):
    """Weights come back to the bit, but for the type: its row is in the positions' then."""
    tensors, _, back = encoders.check_golden(convert, case)
    if case == "roberta_bare":
        back = {name.removeprefix(convert.PREFIX): array for name, array in back.items()}
    assert back.keys() == tensors.keys()
    names = {n for n in tensors if "position_embeddings" in n or "token_type" in n}
    assert len(names) == 2
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors.keys() - names)
    type_name, position_name = sorted(names, key=lambda n: "position" in n)
    assert not back[type_name].any()
    assert np.array_equal(back[position_name], tensors[position_name] + tensors[type_name])


@pytest.mark.parametrize("case", ["roberta_a", "roberta_bare"])
def test_equals_transformers_as_installed(case, tmp_path):
    encoders.check_live(convert, encoders.CASES.CONFIGS[case] | {"vocab_size": 99}, tmp_path)


def test_round_trip_is_exact():
    model = roberta.Model(TINY)
    params, _ = encoders.init(model)
    tensors = write(convert.table(model), params)
    assert tensors[TYPES].shape == (1, 48) and tensors[POSITIONS].shape == (66, 48)
    again = write(convert.table(model), encoders.read(convert, model, tensors))
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    with pytest.raises(MissingInput, match="token_type"):
        encoders.read(convert, model, {k: v for k, v in tensors.items() if k != TYPES})


def test_position_0_is_row_2():
    model = roberta.Model(TINY)
    params, _ = encoders.init(model)
    before = encoders.forward(model, params, encoders.make_batch())["hidden"]
    table = np.array(params["embed"]["positions"]["table"])
    assert table.shape == (66, 48) and model.longest == 64
    for row, moves in ((0, False), (1, False), (2, True), (13, True), (14, False)):
        changed = table.copy()
        changed[row] += 1.0
        other = params | {"embed": params["embed"] | {"positions": {"table": changed}}}
        after = encoders.forward(model, other, encoders.make_batch())["hidden"]
        assert (not np.array_equal(before, after)) == moves, row


@pytest.mark.parametrize(
    "change, message",
    [
        ({"type_vocab_size": 2}, "type_vocab_size=2"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ({"pad_token_id": 0}, "pad_token_id=0"),
        ({"architectures": ["RobertaForCausalLM"]}, "RobertaForCausalLM"),
    ],
)
def test_conversion_refuses_what_does_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        convert.model_of(encoders.CASES.CONFIGS["roberta_a"] | change)


# Bare encoder without pooler; transformers' number has one row more, the type's.
BARE = {"base": 124_055_040, "large": 354_310_144}


@pytest.mark.parametrize("name", roberta.PARAMETERS)
def test_published_parameter_counts(name):
    size = roberta.SIZES[name]
    model = roberta.Model(size)
    assert encoders.count(model) == roberta.PARAMETERS[name]
    assert encoders.count(model, without=("head",)) + size.width == BARE[name]
    with_pooler = {"base": 124_645_632, "large": 355_359_744}[name]
    assert encoders.count(roberta.Encoder(size)) + size.width == with_pooler
    theirs = {"base": 124_697_433, "large": 355_412_057}[name]
    tensors = {n: e.their_shape for e in convert.table(model) for n in e.names()}
    tensors[TYPES] = (1, size.width)
    assert sum(int(np.prod(shape)) for shape in tensors.values()) == theirs


def test_sizes_are_the_published_ones():
    assert roberta.PARAMETERS.keys() == roberta.SIZES.keys() - {"tiny"}


def test_properties():
    model = roberta.Model(TINY)
    params, _ = encoders.init(model)
    batch = encoders.make_batch()
    del batch["types"]  # not read
    out = encoders.forward(model, params, batch)
    assert {name: array.shape for name, array in out.items()} == dict(
        logits=(2, 12, 512), hidden=(2, 12, 48), embedded=(2, 12, 48)
    )
    assert model.activation is bert.gelu_erf
    assert abs(np.std(params["embed"]["tokens"]["table"]) / 0.02 - 1) < 0.03
    encoders.check_padding(model)
    encoders.check_packed(model)
    dropout = roberta.Size(2, 32, 48, 4, vocab=256, length=16, dropout=0.2)
    encoders.check_computes(roberta.Model(dropout), Compute(scan=False, remat="full"))
