"""The one train step, and what is known of a run before a device is touched.

No branch here names a family or an objective: the model maps features to outputs, the objective maps outputs to terms,
the step weights, averages, differentiates and updates.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from flaxlm import sharding
from flaxlm.batch import FEATURES, Batch
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.optim import averaged

Metrics = dict[str, jax.Array]


class MissingName(KeyError):
    """A feature or an output that one side reads and the other does not make."""

    def __str__(self):
        return self.args[0]


class ByName(dict):
    """A dict whose misses say what there is instead."""

    def __init__(self, what: str, items: Mapping):
        super().__init__(items)
        self.what = what

    def __missing__(self, name):
        raise MissingName(f"no {self.what} is named {name!r}; there are {', '.join(sorted(self))}")


class State(struct.PyTreeNode):
    """Everything that training changes."""

    step: jax.Array  # steps done
    params: Any
    opt: Any


def make_init(
    model,
    tx: optax.GradientTransformation,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    seed: int,
):
    """`init() -> State`, a pure function of the seed. The batch of zeros that traces the model is never computed."""

    def init() -> State:
        params = init_params(model, shapes, seed=seed)
        params = sharding.unbox(params)
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=tx.init(params))

    return init


def init_params(model, shapes: Mapping[str, jax.ShapeDtypeStruct], *, seed: int):
    """The parameter tree with dim names (a tree of `sharding.Named`)."""
    batch = ByName(
        "feature", {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    )
    return model.init({"params": jax.random.key(seed)}, batch, train=False)["params"]


def apply_to(model, params):
    """The model with its parameters, as an objective calls it (`objectives.base.Apply`)."""

    def apply(batch: Batch, *, rng, method=None):
        rngs = {} if rng is None else {"dropout": rng}
        named = ByName("feature", batch)
        outputs = model.apply(
            {"params": params}, named, train=rng is not None, rngs=rngs, method=method
        )
        return ByName("output", outputs)

    return apply


def make_train_step(
    model, objective, tx: optax.GradientTransformation, *, seed: int, accumulate: int = 1
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Every denominator is a function of the batch alone, so it is counted once over the whole global batch; losses with
    several terms are exact under accumulation and data parallelism. Dropout is keyed by (seed, step, micro-batch).
    """

    def loss(params, batch, rng, counts):
        batch = ByName("feature", batch)
        outputs = objective.forward(apply_to(model, params), batch, rng)
        means = {
            name: (term.values(outputs, batch) * batch[term.weights]).sum() / counts[name]
            for name, term in objective.terms.items()
        }
        return sum(objective.terms[name].scale * mean for name, mean in means.items()), means

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        counts = {
            name: jnp.maximum(batch[term.weights].sum(), 1)
            for name, term in objective.terms.items()
        }
        gradient = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (total, means), grads = gradient(state.params, batch, rng, counts)
        else:

            def add(sums, micro):
                index, rows = micro
                found = gradient(state.params, rows, jax.random.fold_in(rng, index), counts)
                return jax.tree.map(jnp.add, sums, found), None

            micro_batches = jax.tree.map(partial(_split_rows, accumulate), dict(batch))
            first = jax.tree.map(lambda x: x[0], micro_batches)
            zeros = jax.tree.map(
                jnp.zeros_like, jax.eval_shape(gradient, state.params, first, rng, counts)
            )
            ((total, means), grads), _ = jax.lax.scan(
                add, zeros, (jnp.arange(accumulate), micro_batches)
            )
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": total,
            **means,
            "grad_norm": optax.tree.norm(grads),
            "tokens": _tokens(batch),
        }
        return State(step=state.step + 1, params=params, opt=opt), metrics

    return step


def make_eval_step(
    model, objective
) -> Callable[[State, Batch], dict[str, tuple[jax.Array, jax.Array]]]:
    """`(state, batch) -> {term: (sum, weight)}` without dropout, on the averaged parameters where there are any."""

    def evaluate(state: State, batch: Batch):
        params = averaged(state.opt, state.params)
        outputs = objective.forward(apply_to(model, params), batch, None)
        return {
            name: (
                (term.values(outputs, batch) * batch[term.weights]).sum(),
                batch[term.weights].sum(),
            )
            for name, term in objective.terms.items()
        }

    return evaluate


def _split_rows(parts: int, x: jax.Array) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Micro-batch i takes rows i, i + parts, ...: every device keeps its own rows."""
    micro = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    names = ("batch", "length")[: x.ndim]
    return jax.vmap(lambda rows: sharding.constrain(rows, *names))(micro)


def _tokens(batch: Batch) -> jax.Array:
    """Tokens that are not padding, inputs and targets together."""
    counted = [batch[name] for name in ("segments", "decoder_segments") if name in batch]
    return sum((segments > 0).sum() for segments in counted)


@dataclass(frozen=True)
class Plan:
    """A run traced abstractly: shapes, dim names, layout, bytes. No device has been touched.

    Attributes:
      features: {feature: ShapeDtypeStruct} of the global batch.
      state: State of ShapeDtypeStructs.
      axes: {parameter path: dim names}.
      tx: the optimizer, as it was traced.
    """

    model: Any
    objective: Any
    layout: sharding.Layout
    features: Mapping[str, jax.ShapeDtypeStruct]
    state: State
    axes: Mapping[str, tuple[str, ...]]
    tx: optax.GradientTransformation

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{parameter path: shape}."""
        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {sharding.path_name(path): leaf.shape for path, leaf in leaves}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def map_state(self, function: Callable) -> State:
        """`function(leaf, dim names)` of every leaf of the state."""
        return sharding.map_state(function, self.state, self.state.params, self.axes)

    def state_shardings(self) -> State:
        return self.map_state(lambda leaf, axes: self.layout.sharding(axes))

    def abstract_state(self) -> State:
        """The state as a restore target: shapes, dtypes and shardings."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.state,
            self.state_shardings(),
        )

    def batch_shardings(self) -> dict[str, Any]:
        return {name: self.layout.sharding(FEATURES[name].axes) for name in self.features}

    def bytes_per_device(self) -> dict[str, int]:
        """Bytes one device holds of the parameters, the rest of the state (optimizer) and one batch."""

        def local(leaf, axes):
            parts = math.prod(self.layout.parts(name) for name in axes if name is not None)
            return math.prod(leaf.shape) * leaf.dtype.itemsize // parts

        sizes = self.map_state(local)
        params, everything = (sum(jax.tree.leaves(tree)) for tree in (sizes.params, sizes))
        batch = sum(local(leaf, FEATURES[name].axes) for name, leaf in self.features.items())
        return {"parameters": params, "optimizer": everything - params, "batch": batch}


def trace_features(objective, *, length: int, batch: int, vocab) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch, found by preparing one blank row."""
    row = Rows.of(np.full((1, objective.window(length)), vocab.unk))
    features = objective.prepare(row, RowRandom(0, row.index), vocab)
    return {
        name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in features.items()
    }


def make_plan(experiment, layout: sharding.Layout, vocab) -> Plan:
    """Trace an experiment abstractly and check that its parts go together.

    Args:
      experiment: an `Experiment`.
      layout: real or abstract.
      vocab: ids to trace with; `data.vocabulary.blank()` will do, shapes do not depend on what the ids mean.

    Raises:
      ConfigError: batch and mesh, parameter and mesh, or model and objective do not go together.
    """
    model, objective, data, run = (
        experiment.model,
        experiment.objective,
        experiment.data,
        experiment.run,
    )
    _check_numbers(run, data)
    step = layout.parts("batch") * run.accumulate
    if data.batch % step:
        legal = sorted({max(data.batch // step, 1) * step, (data.batch // step + 1) * step})
        raise ConfigError(
            f"data.batch={data.batch} rows cannot be split over {layout.parts('batch')} batch shard(s) of the mesh x "
            f"run.accumulate={run.accumulate}; nearest that work: {' or '.join(map(str, legal))}"
        )
    features = trace_features(objective, length=data.length, batch=data.batch, vocab=vocab)
    with sharding.using(layout):
        try:
            boxed = jax.eval_shape(partial(init_params, model, features, seed=run.seed))
            axes = sharding.axes_of(boxed)
            tx = experiment.optimizer.build(axes, run.steps)
            init = make_init(model, tx, features, seed=run.seed)
            state = jax.eval_shape(init)
            train_step = make_train_step(
                model, objective, tx, seed=run.seed, accumulate=run.accumulate
            )
            jax.eval_shape(train_step, state, dict(features))
        except MissingName as error:
            raise ConfigError(
                f"{type(objective).__name__} and {type(model).__module__}.{type(model).__name__} do not go together: "
                f"{error}"
            ) from error
    found = Plan(model, objective, layout, features, state, axes, tx)
    sharding.check_params(found.shapes, axes, layout)
    return found


def check_vocab(model, vocab) -> None:
    """Check that the model has a row for every id.

    Raises:
      ConfigError: with both numbers.
    """
    if model.size.vocab < vocab.size:
        raise ConfigError(
            f"model.size.vocab={model.size.vocab} is smaller than the vocabulary, which has {vocab.size} ids "
            f"({vocab.size - len(vocab.sentinels)} pieces and {len(vocab.sentinels)} sentinels); make it {vocab.size} "
            f"or more, or take a smaller data.vocabulary.size"
        )


def _check_numbers(run, data) -> None:
    least = {
        "run.steps": (run.steps, 1),
        "run.accumulate": (run.accumulate, 1),
        "run.log_every": (run.log_every, 1),
        "run.eval_every": (run.eval_every, 0),
        "run.eval_batches": (run.eval_batches, 1),
        "run.save_every": (run.save_every, 0),
        "run.keep": (run.keep, 1),
        "data.batch": (data.batch, 1),
        "data.length": (data.length, 2),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigError(f"{name}={value}: must be at least {smallest}")
