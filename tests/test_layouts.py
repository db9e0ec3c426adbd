"""T5 over the meshes: the same losses to rounding, and every parameter on its devices as the
rules say.
"""

import dataclasses
import math

import jax
import numpy as np
import pytest

from flaxlm import named, sharding
from flaxlm.plan import make_plan
from flaxlm.step import jit_programs
from tests import tiny

LAYOUTS = {
    "1": {"data": 1},
    "data=8": {"data": 8},
    "fsdp=8": {"data": 1, "fsdp": 8},
    "fsdp=4 tensor=2": {"data": 1, "fsdp": 4, "tensor": 2},
    "data=2 fsdp=2 tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence=2": {"data": 1, "sequence": 2},
    "slices=2 fsdp=2 sequence=2": {"data": 1, "slices": 2, "fsdp": 2, "sequence": 2},
}


def train(sizes, steps=5):
    mesh = sharding.Mesh(**sizes)
    layout = sharding.make_layout(mesh, jax.devices()[: math.prod(sizes.values())])
    experiment = dataclasses.replace(tiny.EXPERIMENT, mesh=mesh)
    plan = make_plan(experiment, layout, tiny.VOCABULARY.blank())
    with sharding.using(layout):
        programs = jit_programs(plan, seed=0, accumulate=1)
        state, seen = programs.init(), []
        for index in range(steps):
            batch = jax.device_put(tiny.batch(index), plan.batch_shardings())
            state, metrics = programs.step(state, batch)
            seen.append(float(metrics["loss"]))
    return np.array(seen), state, plan


@pytest.fixture(scope="module")
def one_device():
    return train(LAYOUTS["1"])[0]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "1"])
def test_losses_agree_and_parameters_lie_as_declared(name, one_device):
    seen, state, plan = train(LAYOUTS[name])
    np.testing.assert_allclose(seen, one_device, atol=2e-5)
    per_device = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        axes = plan.axes[named.path_name(path)]
        parts = [plan.layout.parts(dim) for dim in axes]
        expected = tuple(size // ways for size, ways in zip(leaf.shape, parts, strict=True))
        assert {shard.data.shape for shard in leaf.addressable_shards} == {expected}, path
        per_device += leaf.addressable_shards[0].data.nbytes
    assert per_device == plan.bytes_per_device()["parameters"]
    moments = state.opt[1][0].mu
    jax.tree.map(
        lambda a, b: a.sharding == b.sharding or pytest.fail(str(a.shape)), moments, state.params
    )
