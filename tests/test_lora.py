"""Low-rank changes: none at first, nothing else learns, and merged they are the model."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from flaxlm import named, optim, sharding, step
from flaxlm.errors import ConfigError
from flaxlm.experiment import Restore
from flaxlm.lora import EVERYTHING, LoRA
from flaxlm.models import gpt2
from flaxlm.plan import Plan, make_plan
from flaxlm.train import train
from flaxlm.warm import read_warm
from flaxlm.weights import read_weights
from tests import tasks, tiny
from tests.test_finetune import with_files
from tests.test_step import Embedder, TwoTerms, batch_of

LORA = LoRA(rank=2, alpha=6.0, on=("kernel",))


class Scored(TwoTerms):
    """For evaluations too."""

    def answers(self, outputs, batch):
        return {}


def flat(tree) -> dict:
    return {path: np.asarray(x) for path, x in flatten_dict(dict(tree), sep="/").items()}


def planned(learns, model=None):
    """A plan of the smallest model on 8 devices."""
    model, batch = model or Embedder(), batch_of()
    layout = sharding.make_layout(sharding.Mesh(data=2, fsdp=2, tensor=2))
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    with sharding.using(layout):
        boxed = jax.eval_shape(
            lambda: learns.extended(step.init_params(model, shapes, seed=0), seed=0)
        )
        tx = optim.AdamW(optim.Constant(1e-2), decay=0.1).build(
            named.axes_of(learns.split(boxed)[0]), 5
        )
        init = step.make_init(model, tx, shapes, seed=0, learns=learns)
        return Plan(
            model, Scored(), layout, {0: shapes}, jax.eval_shape(init), named.axes_of(boxed), tx,
            learns=learns,
        )  # fmt: skip


def test_a_run_begins_with_the_model_as_it_is_and_low_ranks_alone_learn():
    """Accumulation and layout included; merged, they score as they did beside the model."""
    plan, bare = planned(LORA), planned(EVERYTHING)
    with sharding.using(plan.layout):
        ours, theirs = (step.jit_programs(p, seed=0, accumulate=2) for p in (plan, bare))
        batch = jax.device_put(batch_of(), plan.batch_shardings())
        whole, state = theirs.init(), ours.init()
        for path, leaf in flat(plan.learns.merged(state.params)).items():
            np.testing.assert_array_equal(leaf, flat(whole.params)[path], err_msg=path)
        first, before = float(theirs.evaluate(whole, batch)["nll"][0]), flat(state.params)
        assert float(ours.evaluate(state, batch)["nll"][0]) == pytest.approx(first, rel=1e-6)
        for _ in range(4):
            state, metrics = ours.step(state, batch)
        after = flat(state.params)
        changed = {path for path in before if not np.array_equal(before[path], after[path])}
        assert changed == {"lora/kernel/a", "lora/kernel/b"}
        assert set(metrics["evidence"]["gradients"]) == changed
        merged = jax.device_put(plan.learns.merged(state.params), bare.state_shardings().params)
        last = float(ours.evaluate(state, batch)["nll"][0])
        alone = theirs.evaluate(whole.replace(params=merged), batch)
        assert last < first - 0.1 and float(alone["nll"][0]) == pytest.approx(last, rel=1e-5)
    a, b = after["lora/kernel/a"], after["lora/kernel/b"]
    np.testing.assert_allclose(merged["kernel"], before["kernel"] + 3.0 * a @ b, atol=1e-6)


def test_the_optimizer_keeps_state_of_what_learns_alone():
    plan = planned(dataclasses.replace(LORA, on=("table",)))
    learned, _ = plan.learns.split(plan.state.params)
    size = sum(x.size for x in jax.tree.leaves(learned))
    assert size == 2 * (64 + 16) == plan.parameters - 2 * 64 * 16
    assert sum(x.size for x in jax.tree.leaves(plan.state.opt) if x.ndim) == 2 * size
    assert plan.axes["lora/table/a"] == ("vocab", "rank")
    assert plan.axes["lora/table/b"] == ("rank", "embed")
    specs = plan.state_shardings()
    moments = [x for x in jax.tree.leaves(specs.opt) if x.spec == specs.params["table"].spec]
    assert not moments  # none as large as the table
    assert specs.params["lora"]["table"]["a"].spec == PartitionSpec("tensor", None)


def test_matrices_of_all_layers_are_changed_each_by_its_own():
    size = dataclasses.replace(gpt2.SIZES["tiny"], depth=3)
    batch = {n: np.zeros((2, 4), np.int32) for n in ("tokens", "segments", "positions")}
    lora = LoRA(rank=4, on=("attention/query", "mlp/out"), train=("norm",))
    extended = jax.jit(
        lambda: lora.extended(step.init_params(gpt2.Model(size), shapes, seed=0), seed=1)
    )
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    boxed = extended()
    axes, params = named.axes_of(boxed), named.unbox(boxed)
    assert axes["lora/layers/attention/query/a"] == ("layers", "embed", "rank")
    assert axes["lora/layers/mlp/out/b"] == ("layers", "rank", "embed")
    a = params["lora"]["layers"]["mlp"]["out"]["a"]
    assert a.shape == (3, 128, 4) and float(a.std()) == pytest.approx(128**-0.5, rel=0.1)
    params["lora"]["layers"]["mlp"]["out"]["b"] += 1.0
    change = lora.merged(params)["layers"]["mlp"]["out"] - params["layers"]["mlp"]["out"]
    np.testing.assert_allclose(change, 4 * a.sum(-1, keepdims=True) + 0 * change, atol=1e-5)
    learned, kept = lora.split(params)
    assert set(learned) == {"lora", "norm"} and "norm" not in kept
    assert jax.tree.structure(lora.joined(learned, kept)) == jax.tree.structure(dict(params))
    for wrong, message in (
        (LoRA(on=("attention/keys",)), r"ends in 'attention/keys'; matrices .*attention/key, "),
        (LoRA(on=("norm/scale",)), r"norm/scale is no matrix"),
        (LoRA(train=("heads",)), r"lora\.train: no parameters 'heads'; at the top are embed"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong.extended({name: x for name, x in boxed.items() if name != "lora"}, seed=0)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"lora\.rank=0"):
        LoRA(rank=0)
    with pytest.raises(ConfigError, match=r"lora\.alpha=0"):
        LoRA(alpha=0)
    averaging = dataclasses.replace(tiny.EXPERIMENT, lora=LORA)
    layout = sharding.make_layout(sharding.Mesh())
    with pytest.raises(ConfigError, match=r"optimizer\.ema=0\.9: .* make it 0"):
        make_plan(averaging, layout, tiny.VOCABULARY.blank())


def test_it_resumes_is_read_merged_and_started_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path / "cache"))
    uri = tasks.polarity_files(tmp_path / "files")
    declared = with_files(
        uri, tmp_path / "run", steps=4, save_every=2, eval_every=0, keep=9, keep_best=""
    )
    lora = LoRA(rank=2, alpha=4.0, train=("head", "encoder/pooler"))
    experiment = dataclasses.replace(declared.experiment, lora=lora)
    declared = dataclasses.replace(declared, experiment=experiment)
    assert train(declared) == 0
    straight = read_weights(tmp_path / "run")
    assert "lora" not in straight.params and straight.step == 4
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    halfway = read_weights(tmp_path / "run")
    assert train(declared) == 0
    resumed = read_weights(tmp_path / "run")
    ours, theirs, early = flat(resumed.params), flat(straight.params), flat(halfway.params)
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
    changed = {path for path, leaf in ours.items() if not np.array_equal(leaf, early[path])}
    assert changed == {path for path in ours if "head" in path or "pooler" in path} | {
        f"encoder/layers/attention/{name}" for name in ("query", "value")
    }
    # It is a run as any other for those that come after.
    start = Restore(str(tmp_path / "run"))
    after = dataclasses.replace(experiment, lora=None, start=(start,))
    layout = sharding.make_layout(after.mesh)
    plan = make_plan(after, layout, after.data.vocabulary.blank())
    arrays = read_warm(after, plan, resumes=False).start.arrays
    assert {path: jnp.shape(x) for path, x in arrays.items()} == plan.shapes
