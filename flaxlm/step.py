"""The one train step, and the programs of a run: init, step, evaluation.

No branch here names a family or an objective: the model maps features to outputs, the objective
maps outputs to terms, the step weights, averages, differentiates and updates.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from flaxlm import sharding
from flaxlm.batch import Batch
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
    """`init() -> State`, a pure function of the seed. The batch of zeros that traces the model
    is never computed.
    """

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

    Every denominator is a function of the batch alone, so it is counted once over the whole global
    batch; losses with several terms are exact under accumulation and data parallelism. Dropout is
    keyed by (seed, step, micro-batch).
    """

    def loss(params, batch, rng, counts):
        batch = ByName("feature", batch)
        outputs = objective.forward(apply_to(model, params), batch, rng)
        means = {
            name: _weighted(term, outputs, batch) / counts[name]
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
    """`(state, batch) -> {term: (sum, weight)}` without dropout, on the averaged parameters
    where there are any.
    """

    def evaluate(state: State, batch: Batch):
        params = averaged(state.opt, state.params)
        outputs = objective.forward(apply_to(model, params), batch, None)
        return {
            name: (_weighted(term, outputs, batch), batch[term.weights].sum())
            for name, term in objective.terms.items()
        }

    return evaluate


def _weighted(term, outputs, batch: Batch) -> jax.Array:
    return (term.values(outputs, batch) * batch[term.weights]).sum()


def _split_rows(parts: int, x: jax.Array) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Micro-batch i takes rows i, i + parts, ...: every
    device keeps its own rows.
    """
    micro = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    names = ("batch", "length")[: x.ndim]
    return jax.vmap(lambda rows: sharding.constrain(rows, *names))(micro)


def _tokens(batch: Batch) -> jax.Array:
    """Tokens that are not padding, inputs and targets together."""
    counted = [batch[name] for name in ("segments", "decoder_segments") if name in batch]
    return sum((segments > 0).sum() for segments in counted)


class Programs(NamedTuple):
    """The jitted functions of a run, with every argument and result laid out over the mesh.

    Attributes:
      init: () -> State.
      step: (state, batch) -> (state, metrics); the state is donated.
      evaluate: (state, batch) -> {term: (sum, weight)}.
    """

    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], dict]


def jit_programs(plan, *, seed: int, accumulate: int) -> Programs:
    """The programs of a `plan.Plan`, to be called inside `sharding.using(plan.layout)`."""
    state, batch, everywhere = (
        plan.state_shardings(), plan.batch_shardings(), plan.layout.sharding(())
    )  # fmt: skip
    step = make_train_step(plan.model, plan.objective, plan.tx, seed=seed, accumulate=accumulate)
    return Programs(
        init=jax.jit(make_init(plan.model, plan.tx, plan.features, seed=seed), out_shardings=state),
        step=jax.jit(
            step, in_shardings=(state, batch), out_shardings=(state, everywhere), donate_argnums=0
        ),
        evaluate=jax.jit(
            make_eval_step(plan.model, plan.objective),
            in_shardings=(state, batch),
            out_shardings=everywhere,
        ),
    )
