"""A run traced abstractly, before data is prepared, a device touched or a program compiled."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from flaxlm import sharding
from flaxlm.batch import FEATURES
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.step import MissingName, State, init_params, make_init, make_train_step


@dataclass(frozen=True)
class Plan:
    """A run traced abstractly: shapes, dim names, layout, bytes. No device has been touched.

    Attributes:
      features: {feature: ShapeDtypeStruct} of the global batch.
      state: State of ShapeDtypeStructs.
      axes: {parameter path: dim names}.
      tx: the optimizer, as it was traced.
      frozen: {name: module} of state.frozen.
      frozen_axes: {name: {parameter path: dim names}}.
    """

    model: Any
    objective: Any
    layout: sharding.Layout
    features: Mapping[str, jax.ShapeDtypeStruct]
    state: State
    axes: Mapping[str, tuple[str, ...]]
    tx: optax.GradientTransformation
    frozen: Mapping[str, Any] = field(default_factory=dict)
    frozen_axes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{parameter path: shape}."""
        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {sharding.path_name(path): leaf.shape for path, leaf in leaves}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def train_flops(self) -> float:
        """Matrix FLOPs of one training step over the global batch: three times the forward pass,
        no recomputation.
        """
        return 3 * self.model.flops(
            {name: feature.shape for name, feature in self.features.items()}
        )

    def map_state(self, function: Callable) -> State:
        """`function(leaf, dim names)` of every leaf of the state."""
        trained = self.state.replace(carry={}, frozen={})
        mapped = sharding.map_state(function, trained, self.state.params, self.axes)
        carry = {name: function(x, FEATURES[name].axes) for name, x in self.state.carry.items()}
        frozen = {
            name: sharding.map_params(function, params, self.frozen_axes[name])
            for name, params in self.state.frozen.items()
        }
        return mapped.replace(carry=carry, frozen=frozen)

    def state_shardings(self) -> State:
        return self.map_state(lambda leaf, axes: self.layout.sharding(axes))

    def abstract_state(self) -> State:
        """The state as a restore target: shapes, dtypes, shardings; no frozen parts."""
        state = self.map_state(
            lambda leaf, axes: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.layout.sharding(axes)
            )
        )
        return state.replace(frozen={})

    def batch_shardings(self) -> dict[str, Any]:
        return {name: self.layout.sharding(FEATURES[name].axes) for name in self.features}

    def local_bytes(self, leaf, axes: tuple[str | None, ...]) -> int:
        """Bytes of an array with these dim names that one device holds."""
        parts = math.prod(self.layout.parts(name) for name in axes if name is not None)
        return math.prod(leaf.shape) * leaf.dtype.itemsize // parts

    def bytes_per_device(self) -> dict[str, int]:
        """Bytes one device holds of the parameters, the rest of the state (optimizer) and one
        batch.
        """

        sizes = self.map_state(self.local_bytes)
        params, everything = (sum(jax.tree.leaves(tree)) for tree in (sizes.params, sizes))
        batch = sum(
            self.local_bytes(leaf, FEATURES[name].axes) for name, leaf in self.features.items()
        )
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
      vocab: ids to trace with; `data.vocabulary.blank()` will do, shapes do not depend on what the
        ids mean.

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
            f"data.batch={data.batch} rows cannot be split over {layout.parts('batch')} batch "
            f"shard(s) of the mesh x "
            f"run.accumulate={run.accumulate}; nearest that work: {' or '.join(map(str, legal))}"
        )
    features = trace_features(objective, length=data.length, batch=data.batch, vocab=vocab)
    with sharding.using(layout):
        try:
            boxed = jax.eval_shape(partial(init_params, model, features, seed=run.seed))
            axes = sharding.axes_of(boxed)
            frozen = {part.name: part.model for part in experiment.frozen}
            fixed = {
                name: jax.eval_shape(partial(init_params, other, features, seed=run.seed))
                for name, other in frozen.items()
            }
            tx = experiment.optimizer.build(axes, run.steps)
            state = jax.eval_shape(make_init(model, tx, features, seed=run.seed))
            state = state.replace(frozen=sharding.unbox(fixed))
            train_step = make_train_step(
                model, objective, tx, seed=run.seed, accumulate=run.accumulate, frozen=frozen
            )
            jax.eval_shape(train_step, state, dict(features))
        except MissingName as error:
            raise ConfigError(
                f"{type(objective).__name__} and {type(model).__module__}.{type(model).__name__} "
                f"do not go together: "
                f"{error}"
            ) from error
    frozen_axes = {name: sharding.axes_of(boxed) for name, boxed in fixed.items()}
    found = Plan(
        model, objective, layout, features, state, axes, tx, frozen=frozen, frozen_axes=frozen_axes
    )
    sharding.check_params(found.shapes, axes, layout)
    return found


def check_vocab(model, vocab) -> None:
    """Check that the model has a row for every id.

    Raises:
      ConfigError: with both numbers.
    """
    if model.size.vocab < vocab.size:
        raise ConfigError(
            f"model.size.vocab={model.size.vocab} is smaller than the vocabulary, which has "
            f"{vocab.size} ids "
            f"({vocab.size - len(vocab.sentinels)} pieces and {len(vocab.sentinels)} sentinels); "
            f"make it {vocab.size} "
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
