"""The one train step, and the programs of a run: init, step, evaluation.

No branch here names a family or an objective: the model maps features to outputs, the objective
maps outputs to terms, the step weights, averages, differentiates and updates.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from flaxlm import named, sharding
from flaxlm.batch import FEATURES, Batch
from flaxlm.guard import Health, fresh, joint_norm, judge, norms
from flaxlm.lora import EVERYTHING, Everything
from flaxlm.optim import averaged

Metrics = dict[str, Any]


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
    """The state of a run.

    Attributes:
      step: steps done.
      params: the model's parameters, and what `flaxlm.lora` puts beside them.
      opt: the optimizer's state, of what learns.
      carry: {feature: array} that a model makes in one step and reads in the next (a segment
        memory), rows first; {} for most models.
      frozen: {name: parameters} of models that the objective reads and nobody trains (a teacher).
        Read again at every start, never saved.
      health: what the step remembers of the steps before, to judge itself.
    """

    step: jax.Array
    params: Any
    opt: Any
    carry: dict[str, jax.Array] = struct.field(default_factory=dict)
    frozen: dict[str, Any] = struct.field(default_factory=dict)
    health: Health = struct.field(default_factory=fresh)


def carried(model, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The features that `model` makes for its own next step, from the shapes of the others.

    A model that carries something has a method `carried(shapes)`; it gets the features in its batch
    and returns their successors among its outputs, under the same names.
    """
    return model.carried(shapes) if hasattr(model, "carried") else {}


def make_init(
    model,
    tx: optax.GradientTransformation,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    seed: int,
    learns: Everything = EVERYTHING,
):
    """`init() -> State` (frozen parts left empty), a pure function of the seed. The batch of zeros
    that traces the model is never computed.
    """

    def init() -> State:
        boxed = learns.extended(init_params(model, shapes, seed=seed), seed=seed)
        params = named.unbox(boxed)
        carry = {name: jnp.zeros(x.shape, x.dtype) for name, x in carried(model, shapes).items()}
        opt = tx.init(learns.split(params)[0])
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, carry=carry)

    return init


def init_params(model, shapes: Mapping[str, jax.ShapeDtypeStruct], *, seed: int):
    """The parameter tree with dim names (a tree of `named.Named`)."""
    shapes = {**shapes, **carried(model, shapes)}
    batch = ByName(
        "feature", {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    )
    return model.init({"params": jax.random.key(seed)}, batch, train=False)["params"]


class Applied:
    """A model with its parameters, as an objective calls it (`objectives.base.Apply`)."""

    def __init__(self, model, params, frozen: Mapping[str, "Applied"] | None = None):
        self.model, self.params = model, params
        self.frozen = ByName("frozen model", frozen or {})

    def __call__(self, batch: Batch, *, rng, method=None, layers=False):
        found = self.model.apply(
            {"params": self.params},
            ByName("feature", batch),
            train=rng is not None,
            rngs={} if rng is None else {"dropout": rng},
            method=method,
            mutable=["layers"] if layers else False,
        )
        if not layers:
            return ByName("output", found)
        outputs, sown = found
        leaves = jax.tree_util.tree_leaves_with_path(sown["layers"])
        return ByName(
            "output", {**outputs, **{named.path_name(path): leaf for path, leaf in leaves}}
        )


def make_train_step(
    model,
    objective,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    frozen: Mapping[str, Any] | None = None,
    stacked: Collection[str] = (),
    skip_spike: float = 0.0,
    learns: Everything = EVERYTHING,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Every denominator is a function of the batch alone, so it is counted once over the whole global
    batch; losses with several terms are exact under accumulation and data parallelism. Dropout is
    keyed by (seed, step, micro-batch).

    A step whose loss, gradient or carry is not finite changes nothing but `step` and `health`
    (`flaxlm.guard`); the random numbers of later steps are those of their own numbers.

    Args:
      frozen: the modules of state.frozen, by name.
      stacked: paths of the parameters whose first dim is the layer.
      skip_spike: of `guard.Divergence`.
      learns: which of the parameters learn, and what the model computes with.

    The metrics are scalars, but for "evidence", which says who was it when a step was no good:
    "verdict" [streak, whether the step is good, deviation of the loss, of the gradient norm];
    "rows", {term: [B] weighted sum over each row}; "gradients", {path: norm or [layers] norms}.
    """

    def loss(learned, kept, fixed, batch, rng, counts):
        batch = ByName("feature", batch)
        params = learns.merged(learns.joined(learned, kept))
        apply = Applied(model, params, _frozen(frozen, fixed))
        outputs = objective.forward(apply, batch, rng)
        rows = {name: _weighted(term, outputs, batch) for name, term in objective.terms.items()}
        means = {name: sums.sum() / counts[name] for name, sums in rows.items()}
        total = sum(objective.terms[name].scale * mean for name, mean in means.items())
        return total, (means, rows, outputs)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        learned, kept = learns.split(state.params)
        counts = {
            name: jnp.maximum(batch[term.weights].sum(), 1)
            for name, term in objective.terms.items()
        }

        def gradient(rows, rng):
            found = jax.value_and_grad(loss, has_aux=True)
            (total, (means, by_row, outputs)), grads = found(
                learned, kept, state.frozen, rows, rng, counts
            )
            carry = {name: jax.lax.stop_gradient(outputs[name]) for name in state.carry}
            return (total, means, grads), (carry, by_row)

        batch = {**batch, **state.carry}
        if accumulate == 1:
            (total, means, grads), (carry, by_row) = gradient(batch, rng)
        else:

            def add(sums, micro):
                index, rows = micro
                found, by_row = gradient(rows, jax.random.fold_in(rng, index))
                return jax.tree.map(jnp.add, sums, found), by_row

            micro_batches = {name: _split_rows(accumulate, name, x) for name, x in batch.items()}
            first = {name: x[0] for name, x in micro_batches.items()}
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, first, rng)[0])
            (total, means, grads), (carry, by_row) = jax.lax.scan(
                add, zeros, (jnp.arange(accumulate), micro_batches)
            )
            carry = {name: _join_rows(x, FEATURES[name].axes) for name, x in carry.items()}
            by_row = {name: _join_rows(x, ("batch",)) for name, x in by_row.items()}
        gradients = norms(grads, stacked)
        norm = joint_norm(gradients)
        judged, good, deviations = judge(
            state.health, total, norm, carry=carry, skip_spike=skip_spike
        )
        updates, opt = tx.update(grads, state.opt, learned)
        learned, opt, carry = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (optax.apply_updates(learned, updates), opt, carry),
            (learned, state.opt, state.carry),
        )
        params = learns.joined(learned, kept)
        metrics = {
            "loss": total,
            **means,
            "grad_norm": norm,
            "tokens": _tokens(batch),
            "skipped": judged.skipped,
            "evidence": {
                "verdict": jnp.stack([judged.streak, good, *deviations]).astype(jnp.float32),
                "rows": by_row,
                "gradients": gradients,
            },
        }
        state = state.replace(
            step=state.step + 1, params=params, opt=opt, carry=carry, health=judged
        )
        return state, metrics

    return step


def make_eval_step(
    model,
    objective,
    *,
    frozen: Mapping[str, Any] | None = None,
    learns: Everything = EVERYTHING,
) -> Callable[[State, Batch], dict[str, tuple[jax.Array, jax.Array]]]:
    """`(state, batch) -> {term: (sum, weight)}` without dropout, on the averaged parameters where
    there are any. What is carried between steps is zero: held-out rows do not follow one another.
    Objectives that keep something of every row add "answers", {name: [B, ...]}.
    """

    def evaluate(state: State, batch: Batch):
        batch = {**batch, **jax.tree.map(jnp.zeros_like, state.carry)}
        params = learns.merged(averaged(state.opt, state.params))
        outputs = objective.forward(
            Applied(model, params, _frozen(frozen, state.frozen)), ByName("feature", batch), None
        )
        found = {
            name: (_weighted(term, outputs, batch).sum(), batch[term.weights].sum())
            for name, term in objective.terms.items()
        }
        answers = objective.answers(outputs, batch)
        return {**found, "answers": answers} if answers else found

    return evaluate


def _frozen(models: Mapping[str, Any] | None, params: Mapping[str, Any]) -> dict[str, Applied]:
    return {name: Applied(model, params[name]) for name, model in (models or {}).items()}


def _weighted(term, outputs, batch: Batch) -> jax.Array:
    """[B] weighted sums over the elements of each row."""
    values = term.values(outputs, batch) * batch[term.weights]
    return values.sum(tuple(range(1, values.ndim)))


def _split_rows(parts: int, name: str, x: jax.Array) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...] of a feature. Micro-batch i takes rows i, i + parts, ...:
    every device keeps its own rows.
    """
    micro = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    return jax.vmap(lambda rows: sharding.constrain(rows, *FEATURES[name].axes))(micro)


def _join_rows(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The inverse of `_split_rows`, of an array with these dim names."""
    rows = jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    return sharding.constrain(rows, *axes)


def _tokens(batch: Batch) -> jax.Array:
    """Tokens that are not padding, inputs and targets together."""
    counted = [batch[name] for name in ("segments", "decoder_segments") if name in batch]
    return sum((segments > 0).sum() for segments in counted)


class Programs(NamedTuple):
    """The jitted functions of a run, with every argument and result laid out over the mesh.

    Attributes:
      init: () -> State without its frozen parts.
      step: (state, batch) -> (state, metrics); the state is donated.
      evaluate: of `make_eval_step`.
    """

    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], dict]


def jit_programs(plan, *, seed: int, accumulate: int, skip_spike: float = 0.0) -> Programs:
    """The programs of a `plan.Plan`, to be called inside `sharding.using(plan.layout)`."""
    state, batch, everywhere = (
        plan.state_shardings(), plan.batch_shardings(), plan.layout.sharding(())
    )  # fmt: skip
    step = make_train_step(
        plan.model,
        plan.objective,
        plan.tx,
        seed=seed,
        accumulate=accumulate,
        frozen=plan.frozen,
        stacked=plan.stacked,
        skip_spike=skip_spike,
        learns=plan.learns,
    )
    return Programs(
        init=jax.jit(
            make_init(plan.model, plan.tx, plan.features, seed=seed, learns=plan.learns),
            out_shardings=state.replace(frozen={}),
        ),
        step=jax.jit(
            step, in_shardings=(state, batch), out_shardings=(state, everywhere), donate_argnums=0
        ),
        evaluate=jax.jit(
            make_eval_step(plan.model, plan.objective, frozen=plan.frozen, learns=plan.learns),
            in_shardings=(state, batch),
            out_shardings=everywhere,
        ),
    )
