"""The train step on a model and an objective of the smallest kind: layouts, accumulation,
several terms.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm import losses, named, optim, sharding, step
from flaxlm.plan import Plan


class Embedder(nn.Module):
    """Predicts the target from the token alone: an embedding table and a head."""

    vocab: int = 64
    width: int = 16

    @nn.compact
    def __call__(self, batch, *, train):
        init = nn.initializers.normal(0.5)
        table = self.param("table", named.param(init, "vocab", "embed"), (self.vocab, self.width))
        kernel = self.param("kernel", named.param(init, "embed", "vocab"), (self.width, self.vocab))
        hidden = jnp.take(table, batch["tokens"], axis=0)
        hidden = nn.Dropout(0.1, deterministic=not train)(hidden)
        hidden = sharding.constrain(hidden, "batch", "length", "width")
        return {"logits": losses.Readout(hidden, kernel, vocab=self.vocab)}


@dataclass(frozen=True)
class TwoTerms:
    """Two losses with different denominators, as MLM + NSP have."""

    def forward(self, apply, batch, rng):
        outputs = apply(batch, rng=rng)
        nll, log_z = losses.cross_entropy(outputs["logits"], batch["targets"])
        return {"nll": nll, "log_z": log_z}

    @property
    def terms(self):
        from flaxlm.objectives.base import Term

        return {
            "nll": Term(lambda outputs, batch: outputs["nll"], "weights"),
            "z_loss": Term(lambda outputs, batch: outputs["log_z"] ** 2, "text_weights", scale=0.5),
        }


def batch_of(rows=16, length=8, vocab=64):
    random = np.random.default_rng(0)
    ids = random.integers(0, vocab, (2, rows, length)).astype(np.int32)
    # Micro-batches with very different counts: an average of averages would be wrong.
    weights = (random.random((rows, length)) < np.linspace(0.05, 0.9, rows)[:, None]).astype(
        np.float32
    )
    return {
        "tokens": ids[0],
        "segments": np.ones((rows, length), np.int32),
        "targets": ids[1],
        "weights": weights,
        "text_weights": np.ones((rows, length), np.float32),
    }


def train(mesh, *, accumulate=1, steps=5, model=None, optimizer=None):
    model = model or Embedder()
    batch = batch_of()
    layout = sharding.make_layout(mesh, jax.devices()[: max(1, np.prod(list(mesh_sizes(mesh))))])
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    optimizer = optimizer or optim.AdamW(optim.Constant(1e-2), decay=0.1, ema=0.9)
    with sharding.using(layout):
        boxed = jax.eval_shape(lambda: step.init_params(model, shapes, seed=0))
        axes = named.axes_of(boxed)
        tx = optimizer.build(axes, steps)
        abstract = jax.eval_shape(step.make_init(model, tx, shapes, seed=0))
        plan = Plan(model, TwoTerms(), layout, {0: shapes}, abstract, axes, tx)
        programs = step.jit_programs(plan, seed=0, accumulate=accumulate)
        state = programs.init()
        placed = jax.device_put(batch, plan.batch_shardings())
        losses_seen = []
        for _ in range(steps):
            before = state
            state, metrics = programs.step(state, placed)
            losses_seen.append(float(metrics["loss"]))
        assert jax.tree.leaves(before.params)[0].is_deleted(), "the state is donated"
    return np.array(losses_seen), state, plan


def mesh_sizes(mesh):
    return [size for size in (mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence) if size > 0]


LAYOUTS = {
    "data=8": sharding.Mesh(data=8),
    "fsdp=8": sharding.Mesh(data=1, fsdp=8),
    "fsdp=4 tensor=2": sharding.Mesh(data=1, fsdp=4, tensor=2),
    "data=2 fsdp=2 tensor=2": sharding.Mesh(data=2, fsdp=2, tensor=2),
    "data=4 sequence=2": sharding.Mesh(data=4, sequence=2),
}


@pytest.fixture(scope="module")
def one_device():
    return train(sharding.Mesh(data=1))[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_mesh_layouts_agree(name, one_device):
    seen, state, plan = train(LAYOUTS[name])
    np.testing.assert_allclose(seen, one_device, atol=2e-5)
    assert seen[-1] < seen[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        axes = plan.axes[named.path_name(path)]
        assert leaf.sharding.spec == plan.layout.spec(axes), path


def test_accumulation_is_exact_for_several_terms():
    """One batch in 1 and in 4 micro-batches: same gradient, although the micro-batches have
    unequal weights.
    """
    model, batch = Embedder(), batch_of()
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    params = named.unbox(step.init_params(model, shapes, seed=0))
    tx = optim.AdamW(optim.Constant(1.0), clip=0.0).build(
        {"table": ("vocab", "embed"), "kernel": ("embed", "vocab")}, 1
    )

    class NoDropout(TwoTerms):
        def forward(self, apply, batch, rng):
            return super().forward(apply, batch, None)

    results = []
    for accumulate in (1, 4):
        update = step.make_train_step(model, NoDropout(), tx, seed=0, accumulate=accumulate)
        state = step.State(jnp.zeros((), jnp.int32), params, tx.init(params))
        results.append(jax.jit(update)(state, batch))
    (one, seen_one), (four, seen_four) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), seen_one, seen_four)
    moments = [state.opt[0][0].mu for state in (one, four)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *moments)


def test_the_average_follows_the_parameters():
    _, state, _ = train(sharding.Mesh(data=1), steps=3)
    mean = optim.averaged(state.opt, None)
    assert jax.tree.structure(mean) == jax.tree.structure(state.params)
    far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), mean, state.params)
    assert all(0 < distance < 0.1 for distance in jax.tree.leaves(far))


def test_a_dim_that_does_not_divide_names_parameter_axis_and_nearest_size():
    layout = sharding.abstract_layout(sharding.Mesh(data=1, tensor=8), 8)
    with pytest.raises(
        sharding.ConfigError, match=r"parameter head.*'vocab' of size 30.*tensor=6, or size 32"
    ):
        sharding.check_params({"head": (16, 30)}, {"head": ("embed", "vocab")}, layout)


def test_an_unknown_dim_name_raises():
    with pytest.raises(KeyError, match="not in the sharding rules"):
        sharding.constrain(jnp.zeros((2, 2)), "batch", "lenght")


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        (sharding.Mesh(data=3), 8, "does not fit 8 device"),
        (sharding.Mesh(data=-1, fsdp=-1), 8, "only one axis"),
        (sharding.Mesh(data=0), 8, "at least 1"),
        (sharding.Mesh(data=-1, fsdp=3), 8, "does not fit 8"),
    ],
)
def test_meshes_that_cannot_be(mesh, devices, message):
    with pytest.raises(sharding.ConfigError, match=message):
        mesh.sizes(devices)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"embed": ("fspd",)}, r"mesh\.rules\.embed=fspd: did you mean fsdp"),
        ({"emded": ("fsdp",)}, r"mesh\.rules\.emded: .*did you mean embed"),
    ],
)
def test_rules_name_dims_and_axes_that_exist(rules, message):
    with pytest.raises(sharding.ConfigError, match=message):
        sharding.Mesh(rules={**sharding.RULES, **rules})
    with pytest.raises(sharding.ConfigError, match="no rule for attention_heads, batch"):
        sharding.Mesh(rules={"embed": ("fsdp",)})


def test_constraints_reach_the_compiler():
    """A constraint that silently vanished would pass every numerical test."""
    layout = sharding.make_layout(sharding.Mesh(data=8))
    with sharding.using(layout):
        text = (
            jax.jit(lambda x: sharding.constrain(x * 2, "batch", "length"))
            .lower(jnp.ones((8, 4)))
            .as_text()
        )
    assert "sharding_constraint" in text


def test_one_mesh_axis_cannot_split_two_dims():
    layout = sharding.abstract_layout(sharding.Mesh(data=1, tensor=2), 2)
    with pytest.raises(sharding.ConfigError, match="cannot split two dims"):
        layout.spec(("heads", "mlp"))
