"""What every conversion does with its own result: read it back, compare, run both models."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from flaxlm.batch import FEATURES, Features
from flaxlm.errors import StorageError
from flaxlm.lm import outputs
from flaxlm.nn.compute import Compute
from flaxlm.step import carried

_ROWS, _LENGTH = 2, 12


def check_same(written: Mapping, read: Mapping, *, where: str) -> None:
    """Check that all arrays of two parameter trees are the same, bit for bit.

    Raises:
      StorageError: naming the first that is not.
    """
    ours, theirs = flatten_dict(dict(written), sep="/"), flatten_dict(dict(read), sep="/")
    for name in sorted({*ours, *theirs}):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            raise StorageError(f"{where} was read back with other arrays: {name}")
        a, b = np.asarray(a), np.asarray(b)
        if (a.shape, a.dtype, a.tobytes()) != (b.shape, b.dtype, b.tobytes()):
            raise StorageError(f"{where} was read back with other values in {name}")


def largest_difference(one: tuple[nn.Module, Mapping], other: tuple[nn.Module, Mapping]) -> float:
    """Of all outputs of two models (module, parameters) on one random batch, in fp32."""
    batch = random_batch(one[0], seed=0)
    sides = []
    for model, params in (one, other):
        model = model.clone(compute=Compute(), parent=None)
        run = jax.jit(lambda params, batch, model=model: outputs(model, params, batch))
        sides.append(run(jax.tree.map(jnp.asarray, params), batch))
    first, second = sides
    pairs = ((np.asarray(first[name]), np.asarray(second[name])) for name in first)
    return max(float(np.abs(a - b).max()) for a, b in pairs if a.size)


def random_batch(model: nn.Module, *, seed: int) -> Features:
    """A small batch of all features that a model reads; the last row ends in padding."""
    rng = np.random.default_rng(seed)
    length = min(_LENGTH, getattr(model, "longest", None) or _LENGTH)
    real = np.arange(length) < np.append(np.full(_ROWS - 1, length), length // 2)[:, None]
    made = {}
    for name, shape in features_of(model, length).items():
        declared = FEATURES[name]
        if declared.below == "vocab":
            value = rng.integers(0, model.size.vocab, shape)
        elif name.endswith("segments"):
            value = real
        elif name.endswith("positions"):
            value = np.broadcast_to(np.arange(length), shape) * real
        elif declared.dtype is np.float32:
            value = rng.standard_normal(shape)
        else:
            value = rng.integers(0, 2, shape)
        made[name] = np.asarray(value, declared.dtype)
    return made


def features_of(model: nn.Module, length: int = _LENGTH) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the features that a model reads, found by tracing it."""
    sizes = {"batch": _ROWS, "length": length, "keys": length, "slots": 3}
    tokens = {"tokens": jax.ShapeDtypeStruct((_ROWS, length), np.int32)}
    seen = {name: x.shape for name, x in carried(model, tokens).items()}

    class Recorder(dict):
        def __missing__(self, name):
            declared = FEATURES[name]
            seen.setdefault(name, tuple(sizes[axis] for axis in declared.axes if axis in sizes))
            self[name] = jnp.zeros(seen[name], declared.dtype)
            return self[name]

        def __contains__(self, name):
            return name in seen

    batch = Recorder()
    jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    return {name: seen[name] for name in seen}
