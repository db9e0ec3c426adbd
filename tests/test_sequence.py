"""The mesh axis "sequence": rows of one text on several devices. Losses are the same on any layout;
memory per device falls as the axis grows.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from flaxlm import optim, sharding
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.data.spec import Data, Source
from flaxlm.experiment import Experiment, Run
from flaxlm.models import bert, gpt2, t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.causal_lm import StreamLM
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.plan import make_plan
from flaxlm.step import jit_programs
from tests import tiny

LENGTH = 64


def experiment(model, objective, *, length=LENGTH, batch=8):
    return Experiment(
        model=model,
        objective=objective,
        data=Data(
            sources=(Source("embedded:english"),), batch=batch, length=length,
            vocabulary=tiny.VOCABULARY,
        ),
        optimizer=optim.AdamW(optim.Constant(1e-3)),
        run=Run(steps=3),
    )  # fmt: skip


ONE = {"data": 1}
FAMILIES = {
    "gpt": experiment(gpt2.Model(gpt2.SIZES["tiny"]), StreamLM()),
    "bert": experiment(
        bert.MaskedLanguageModel(dataclasses.replace(bert.SIZES["tiny"], types=0)),
        MaskedLM(slots=8),
    ),
    "t5": experiment(t5.Model(t5.SIZES["tiny"]), SpanCorruption(), length=48),  # and 12 targets
}
# All have 4 heads: on the last layout they do not divide, and keys are gathered.
LAYOUTS = {
    "fsdp=2 tensor=2 sequence=2": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
    "slices=2 sequence=4": {"data": 1, "slices": 2, "sequence": 4},
    "tensor=2 sequence=4": {"data": 1, "tensor": 2, "sequence": 4},
}


def plan_of(declared, sizes):
    mesh = sharding.Mesh(**sizes)
    layout = sharding.make_layout(mesh, jax.devices()[: math.prod(sizes.values())])
    declared = dataclasses.replace(declared, mesh=mesh)
    return make_plan(declared, layout, tiny.VOCABULARY.blank())


def losses(declared, sizes):
    plan = plan_of(declared, sizes)
    data, objective = declared.data, declared.objective
    seen = []
    with sharding.using(plan.layout):
        programs = jit_programs(plan, seed=0, accumulate=1)
        state = programs.init()
        for step in range(3):
            shape = data.batch, objective.window(data.length)
            ids = np.random.default_rng(step).integers(7, tiny.VOCABULARY.size, shape)
            rows = Rows.of(ids, index=np.arange(data.batch))
            batch = objective.prepare(rows, RowRandom(0, rows.index), tiny.VOCABULARY.blank())
            batch = jax.device_put(batch, plan.batch_shardings())
            state, metrics = programs.step(state, batch)
            seen.append(float(metrics["loss"]))
    return np.array(seen)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(experiment, its losses on one device)."""
    declared = FAMILIES[request.param]
    return declared, losses(declared, ONE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_agree(family, layout):
    declared, expected = family
    assert np.ptp(expected) > 1e-3, "it does learn"
    np.testing.assert_allclose(losses(declared, LAYOUTS[layout]), expected, atol=2e-5)


def compiled(declared, sizes):
    plan = plan_of(declared, sizes)
    with sharding.using(plan.layout):
        step = jit_programs(plan, seed=0, accumulate=1).step
        shardings = plan.batch_shardings()
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
            for name, x in plan.features.items()
        }
        return step.lower(plan.abstract_state(), batch).compile(), plan


def device_bytes(program):
    found = program.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


def test_memory_of_16k_tokens_falls_as_the_axis_grows():
    size = gpt2.Size(2, 64, 256, 8, head_dim=8, vocab=512, positions=2**14, dropout=0.0)
    declared = experiment(gpt2.Model(size, Compute()), StreamLM(), length=2**14, batch=1)
    found = []
    for ways in (1, 2, 4, 8):
        program, plan = compiled(declared, {"data": 1, "sequence": ways})
        assert plan.attention.startswith("chunked")
        found.append(device_bytes(program))
    print("MiB per device:", [round(size / 2**20) for size in found])
    assert all(after < 0.75 * before for before, after in itertools.pairwise(found)), found


def test_positions_are_exchanged_for_heads():
    """With heads that divide four exchanges each way, of queries, keys, values and the result; what
    is gathered are segment ids and weights.
    """
    declared = FAMILIES["gpt"]
    program, _ = compiled(declared, {"data": 1, "sequence": 4})
    lines = program.as_text().splitlines()
    assert sum(" all-to-all(" in line for line in lines) == 8
    kind = f"f32[{declared.data.batch},{LENGTH}"
    assert not [line for line in lines if " all-gather(" in line and kind in line]
