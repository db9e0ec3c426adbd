"""GPT-3 alone: its alternation of dense and banded layers. The rest is in test_gpt.py."""

from dataclasses import replace

import numpy as np
import pytest

from flaxlm.errors import ConfigError
from flaxlm.models import gpt2, gpt3
from flaxlm.nn import masks
from tests.gpts import changed, forward, init, loud, make_batch

SIZE = replace(gpt3.SIZES["tiny"], band=4)


def test_a_band_is_the_last_positions_and_itself():
    mask = masks.near(3) & masks.causal()
    seen = np.asarray(mask.dense(6, 6))[0, 0].astype(int)
    assert seen.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]


def reach(size, params):
    """Which positions feel that the first token of the row is another."""
    model, batch = gpt3.Model(size), make_batch(rows=1, length=16)
    before, after = (forward(model, params, x)["hidden"] for x in (batch, changed(batch, 0)))
    return (before != after).any(axis=-1)[0].tolist()


def test_layers_alternate_and_the_first_is_dense():
    one = replace(SIZE, depth=1)
    assert all(reach(one, loud(init(gpt3.Model(one), make_batch())[0])))
    params = loud(init(gpt3.Model(SIZE), make_batch())[0])
    attention = params["layers"]["attention"]
    for kernel in ("out", "out_bias"):  # the dense layer does not attend
        attention[kernel] = attention[kernel].at[0].set(0)
    assert reach(SIZE, params) == [True] * 4 + [False] * 12


def test_a_band_as_wide_as_the_row_is_gpt2():
    size = replace(SIZE, band=SIZE.positions)
    model, batch = gpt3.Model(size), make_batch(length=32)
    params = loud(init(model, batch)[0])
    dense = {name: value for name, value in vars(size).items() if name != "band"}
    expected = forward(gpt2.Model(gpt2.Size(**dense)), params, batch)
    np.testing.assert_allclose(
        forward(model, params, batch)["hidden"], expected["hidden"], atol=1e-5
    )
    banded = forward(gpt3.Model(SIZE), params, batch)["hidden"]
    assert np.abs(banded - expected["hidden"]).max() > 1e-2


def test_a_band_holds_at_least_the_query():
    with pytest.raises(ConfigError, match=r"model\.size\.band=0"):
        replace(SIZE, band=0)
