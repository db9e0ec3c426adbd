"""A run traced abstractly, before data is prepared, a device touched or a program compiled."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax

from flaxlm import named, sharding
from flaxlm.batch import FEATURES
from flaxlm.data.examples import check_tasks
from flaxlm.data.random import RowRandom
from flaxlm.errors import ConfigError
from flaxlm.lora import EVERYTHING, Everything
from flaxlm.nn.kernels import described, recorded
from flaxlm.retention import Retention
from flaxlm.step import MissingName, State, carried, init_params, make_init, make_train_step

_LONGEST = 2**20  # positions of a row: tracing makes one


@dataclass(frozen=True)
class Plan:
    """A run traced abstractly: shapes, dim names, layout, bytes. No device has been touched.

    Attributes:
      phases: {first step: {feature: ShapeDtypeStruct} of the global batch} of each phase.
      state: State of ShapeDtypeStructs.
      axes: {parameter path: dim names}.
      tx: the optimizer, as it was traced.
      learns: which of the parameters learn.
      frozen: {name: module} of state.frozen.
      frozen_axes: {name: {parameter path: dim names}}.
      attention: which way to attend the layers take, and why, as the trace of the step found.
    """

    model: Any
    objective: Any
    layout: sharding.Layout
    phases: Mapping[int, Mapping[str, jax.ShapeDtypeStruct]]
    state: State
    axes: Mapping[str, tuple[str, ...]]
    tx: optax.GradientTransformation
    frozen: Mapping[str, Any] = field(default_factory=dict)
    frozen_axes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    attention: str = ""
    learns: Everything = EVERYTHING

    @property
    def features(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Of the first phase."""
        return self.phases[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{parameter path: shape}."""
        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {named.path_name(path): leaf.shape for path, leaf in leaves}

    @property
    def tables(self) -> dict[str, int]:
        """{feature: rows of the model's table that it is looked up in}, beside vocabulary and
        positions, which are checked as a plan is made.
        """
        types = getattr(self.model.size, "types", 0)  # 0: no such table
        return ({"types": types} if types else {}) | getattr(self.model, "tables", {})

    @property
    def stacked(self) -> tuple[str, ...]:
        """Paths of the parameters whose first dim is the layer."""
        return tuple(path for path, axes in self.axes.items() if axes[:1] == ("layers",))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def train_flops(self, step: int = 0) -> float:
        """Matrix FLOPs of training step `step` over the global batch: three times the forward
        pass, no recomputation.
        """
        features = self.phases[max(start for start in self.phases if start <= step)]
        return 3 * self.model.flops({name: feature.shape for name, feature in features.items()})

    def map_state(self, function: Callable) -> State:
        """`function(leaf, dim names)` of every leaf of the state."""
        trained = self.state.replace(carry={}, frozen={})
        mapped = named.map_state(function, trained, self.state.params, self.axes)
        carry = {name: function(x, FEATURES[name].axes) for name, x in self.state.carry.items()}
        frozen = {
            name: named.map_params(function, params, self.frozen_axes[name])
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
        """Bytes one device holds of the parameters, frozen models, the rest of the state
        (optimizer) and one batch of the largest phase.
        """

        sizes = self.map_state(self.local_bytes)
        params, frozen, health, everything = (
            sum(jax.tree.leaves(tree)) for tree in (sizes.params, sizes.frozen, sizes.health, sizes)
        )
        batch = max(
            sum(self.local_bytes(leaf, FEATURES[name].axes) for name, leaf in features.items())
            for features in self.phases.values()
        )
        optimizer = everything - params - frozen - health  # that is 1 KiB
        return {"parameters": params, "frozen": frozen, "optimizer": optimizer, "batch": batch}


def trace_features(objective, *, length: int, batch: int, vocab) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch, found by preparing one blank row."""
    row = objective.blank(length, vocab)
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
    _check_rows(model, objective, data)
    tasks = check_tasks(objective, data)
    if tasks and run.eval_batches:
        raise ConfigError(
            f"run.eval_batches={run.eval_batches}: the metrics of a task are those of all its "
            "examples; make it 0"
        )
    measured = {*objective.terms, *tasks}
    Retention(run.keep, run.keep_hours, run.keep_best).check(run, measured)
    _check_batches(data, layout.parts("batch"), run.accumulate)
    phases = {
        phase.start: trace_features(objective, length=phase.length, batch=phase.batch, vocab=vocab)
        for phase in data.course
    }
    features = phases[0]
    learns = experiment.lora or EVERYTHING
    if experiment.lora and experiment.optimizer.ema:
        raise ConfigError(
            f"optimizer.ema={experiment.optimizer.ema}: no average is kept of low-rank changes; "
            "make it 0"
        )
    by_length = {phase.length: phases[phase.start] for phase in data.course}
    with sharding.using(layout):
        try:
            boxed = jax.eval_shape(
                lambda: learns.extended(init_params(model, features, seed=run.seed), seed=run.seed)
            )
            axes = named.axes_of(boxed)
            learned, _ = learns.split(boxed)
            frozen = {part.name: part.model for part in experiment.frozen}
            fixed = {
                name: jax.eval_shape(partial(init_params, other, features, seed=run.seed))
                for name, other in frozen.items()
            }
            tx = experiment.optimizer.build(named.axes_of(learned), run.steps)
            state = jax.eval_shape(make_init(model, tx, features, seed=run.seed, learns=learns))
            state = state.replace(frozen=named.unbox(fixed))
            train_step = make_train_step(
                model, objective, tx, seed=run.seed, accumulate=run.accumulate, frozen=frozen,
                learns=learns,
            )  # fmt: skip
            _check_carried(model, objective, phases, data)
            with recorded() as attention:
                for shapes in by_length.values():
                    jax.eval_shape(train_step, state, dict(shapes))
        except MissingName as error:
            raise ConfigError(
                f"{type(objective).__name__} and {type(model).__module__}.{type(model).__name__} "
                f"do not go together: "
                f"{error}"
            ) from error
    frozen_axes = {name: named.axes_of(boxed) for name, boxed in fixed.items()}
    found = Plan(
        model,
        objective,
        layout,
        phases,
        state,
        axes,
        tx,
        frozen=frozen,
        frozen_axes=frozen_axes,
        attention=described(attention),
        learns=learns,
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
        "run.eval_batches": (run.eval_batches, 0),
        "run.save_every": (run.save_every, 0),
        "run.keep": (run.keep, 1),
        "run.patience": (run.patience, 0),
    }
    starts = [phase.start for phase in data.course]
    for at, phase in enumerate(data.course):
        where = _where(at)
        least |= {f"{where}.batch": (phase.batch, 1), f"{where}.length": (phase.length, 2)}
        if phase.length > _LONGEST:
            raise ConfigError(f"{where}.length={phase.length}: must be at most {_LONGEST}")
        if at:
            least[f"{where}.start"] = (phase.start, starts[at - 1] + 1)
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigError(f"{name}={value}: must be at least {smallest}")


def _where(at: int) -> str:
    """What declares the phase number `at` of a run."""
    return f"data.phases.{at - 1}" if at else "data"


def _check_rows(model, objective, data) -> None:
    name = type(objective).__name__
    if data.packing not in objective.packings:
        raise ConfigError(
            f"data.packing={data.packing}: {name} takes {' or '.join(objective.packings)}"
        )
    longest = getattr(model, "longest", None)  # models without a table of positions have none
    for at, phase in enumerate(data.course):
        if longest is not None and phase.length > longest:
            raise ConfigError(
                f"{_where(at)}.length={phase.length}: {type(model).__module__} has a table of "
                f"{longest} positions; at most that many, or a larger model.size"
            )
        if data.packing == "continue" and phase.batch != data.batch:
            raise ConfigError(
                f"{_where(at)}.batch={phase.batch}: under data.packing=continue every row goes on "
                f"for the whole run; it must stay {data.batch}"
            )


def _check_carried(model, objective, phases, data) -> None:
    kept = [carried(model, features) for features in phases.values()]
    read, moved = getattr(model.size, "reuse", 0), getattr(objective, "reuse", 0)
    if kept[0] and read != moved:
        raise ConfigError(
            f"model.size.reuse={read} but objective.reuse={moved}: the memory would not begin "
            "where the next row does; give both the same number"
        )
    if kept[0] and data.packing != "continue":
        raise ConfigError(
            f"data.packing={data.packing}: {type(model).__module__} with this size carries "
            "a memory from step to step, so its rows must go on where they ended: continue"
        )
    for at, found in enumerate(kept):
        if found != kept[0]:
            raise ConfigError(
                f"{_where(at)}: {type(model).__module__} carries a memory from step to step, and a "
                "phase of other sizes would change its shape"
            )


def _check_batches(data, shards: int, accumulate: int) -> None:
    step = shards * accumulate
    for at, phase in enumerate(data.course):
        if phase.batch % step:
            below = phase.batch // step
            legal = sorted({max(below, 1) * step, (below + 1) * step})
            raise ConfigError(
                f"{_where(at)}.batch={phase.batch} rows cannot be split over {shards} batch "
                f"shard(s) of the mesh x run.accumulate={accumulate}; nearest that work: "
                f"{' or '.join(map(str, legal))}"
            )
