"""A training step of flaxlm, made of the parts that `flaxlm.train` is made of."""

import jax
import numpy as np

from flaxlm import named, optim, sharding, step
from flaxlm.models import bert, gpt2, t5
from flaxlm.nn.compute import Compute
from flaxlm.objectives.causal_lm import StreamLM
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.objectives.tokens import shift_right
from flaxlm.plan import Plan

from . import shapes


def _places(tokens):
    """Segments and positions of rows that are one text each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return {"segments": np.ones_like(tokens), "positions": positions}


def _weights(targets):
    ones = np.ones(targets.shape, np.float32)
    return {"targets": targets, "weights": ones, "text_weights": ones}


def _gpt2(shape, compute, arrays):
    size = gpt2.Size(
        shape["depth"], shape["width"], shape["mlp"], shape["heads"],
        shape["width"] // shape["heads"], vocab=shape["vocab"], positions=shape["length"],
        dropout=shape["dropout"],
    )  # fmt: skip
    tokens = arrays["tokens"]
    features = {"tokens": tokens, **_places(tokens), **_weights(arrays["targets"])}
    return gpt2.Model(size, compute), StreamLM(), features


def _bert(shape, compute, arrays):
    size = bert.Size(
        shape["depth"], shape["width"], shape["mlp"], shape["heads"], vocab=shape["vocab"],
        length=shape["length"], dropout=shape["dropout"], attention_dropout=shape["dropout"],
    )  # fmt: skip
    tokens, slots = arrays["tokens"], arrays["slots"]
    features = {
        "tokens": tokens, **_places(tokens), "types": np.zeros_like(tokens), "slots": slots,
        "slot_targets": arrays["slot_targets"],
        "slot_weights": np.ones(slots.shape, np.float32),
    }  # fmt: skip
    return bert.MaskedLanguageModel(size, compute), MaskedLM(slots=shape["slots"]), features


def _t5(shape, compute, arrays):
    size = t5.Size(
        shape["depth"], shape["width"], shape["mlp"], shape["heads"],
        shape["width"] // shape["heads"], vocab=shape["vocab"], dropout=shape["dropout"],
    )  # fmt: skip
    tokens, targets = arrays["tokens"], arrays["targets"]
    features = {
        "tokens": tokens, "segments": np.ones_like(tokens),
        "decoder_tokens": shift_right(targets, 0), "decoder_segments": np.ones_like(targets),
        **_weights(targets),
    }  # fmt: skip
    kind = t5.ModelV10 if shape["family"] == "t5_v1_0" else t5.Model
    return kind(size, compute), SpanCorruption(), features


_MAKERS = {"gpt2": _gpt2, "bert": _bert, "t5": _t5, "t5_v1_0": _t5}


class Step:
    """The compiled step with its state and its batch, on one device.

    Attributes:
      parameters: of the model, padding of the vocabulary included.
      flops: of the matrix products of one training step, no recomputation.
    """

    def __init__(self, shape: dict, *, scan: bool):
        compute = Compute(dtype=shape["dtype"], scan=scan)
        model, objective, features = _MAKERS[shape["family"]](shape, compute, shapes.batch(shape))
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in features.items()}
        self._layout = sharding.make_layout(sharding.Mesh(data=1), jax.devices()[:1])
        with sharding.using(self._layout):
            axes = named.axes_of(jax.eval_shape(lambda: step.init_params(model, abstract, seed=0)))
            tx = optim.AdamW(optim.Constant(1e-4), decay=0.01).build(axes, 1)
            state = jax.eval_shape(step.make_init(model, tx, abstract, seed=0))
            plan = Plan(model, objective, self._layout, {0: abstract}, state, axes, tx)
            programs = step.jit_programs(plan, seed=0, accumulate=1)
            self._state, self._step = programs.init(), programs.step
            self._batch = jax.device_put(features, plan.batch_shardings())
        self.parameters, self.flops = plan.parameters, plan.train_flops()

    def run(self, steps: int) -> float:
        """Makes the steps, returns the last loss."""
        with sharding.using(self._layout):
            for _ in range(steps):
                self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready(self._state)
            return float(metrics["loss"])

    def peak_bytes(self) -> int | None:
        """Most memory of the device that was in use, where the device counts it."""
        counted = jax.devices()[0].memory_stats()
        return counted["peak_bytes_in_use"] if counted else None

    def device(self) -> str:
        return jax.devices()[0].device_kind
