"""Greedy generation by flaxlm, as `lm.generate` does it; one step is one call."""

import jax
import numpy as np

from flaxlm.convert.check import random_batch
from flaxlm.decode.prompts import Reader, padded, search_of
from flaxlm.decode.settings import Settings
from flaxlm.models import gpt2, t5
from flaxlm.named import unbox
from flaxlm.nn.compute import Compute
from flaxlm.nn.stack import apart


def _model(shape: dict, scan: bool):
    compute = Compute(dtype=shape["dtype"], scan=scan)
    numbers = [shape[name] for name in ("depth", "width", "mlp", "heads")]
    more = dict(vocab=shape["vocab"], dropout=0.0)
    if shape["family"] == "gpt2":
        longest = shape["length"] + shape["new"]
        return gpt2.Model(gpt2.Size(*numbers, positions=longest, **more), compute)
    kind = t5.ModelV10 if shape["family"] == "t5_v1_0" else t5.Model
    return kind(t5.Size(*numbers, **more), compute)


class Step:
    """A compiled search with its prompts.

    Attributes:
      parameters: of the model, padding of the vocabulary included.
    """

    flops = None

    def __init__(self, shape: dict, *, scan: bool):
        model = _model(shape, scan)
        batch = random_batch(model, seed=0)
        boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
        self._params = unbox(boxed) if scan else apart(unbox(boxed))
        self.parameters = sum(x.size for x in jax.tree.leaves(self._params))
        settings = Settings(max_new_tokens=shape["new"])
        reader = Reader.of(model, None, start=0)
        random = np.random.default_rng(0)
        ids = random.integers(2, shape["vocab"], (shape["rows"], shape["length"]))
        prompts, nothing = [reader.ids(row) for row in ids], [np.zeros(0, np.int32)] * len(ids)
        self._search = search_of(reader, settings)
        self._inputs = jax.device_put(padded(reader, prompts, nothing, settings, seed=0, first=0))
        self._new = shape["new"]

    def run(self, steps: int) -> float:
        """Generates so often, returns a log-likelihood."""
        for _ in range(steps):
            found = jax.device_get(self._search.run(self._params, self._inputs))
            assert (found.lengths == self._new).all()
        return float(found.likelihoods[0])

    def peak_bytes(self) -> int | None:
        """Most memory of the device that was in use, where the device counts it."""
        counted = jax.devices()[0].memory_stats()
        return counted["peak_bytes_in_use"] if counted else None

    def device(self) -> str:
        return jax.devices()[0].device_kind
