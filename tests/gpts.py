"""What the tests of GPT-1, 2 and 3 share."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np

from flaxlm import named

PARITY = Path(__file__).parent / "parity"


def load(path):
    """A script of tests/parity as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(rows=2, length=12, vocab=512, seed=0):
    """Random rows of one segment."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {"tokens": tokens, "segments": np.ones_like(tokens), "positions": positions}


def init(model, batch):
    """(parameters, their dim names)."""
    boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
    return named.unbox(boxed), named.axes_of(boxed)


def loud(params):
    """Parameters of a scale at which every part matters: fresh ones predict nearly uniformly."""
    return jax.tree.map(
        lambda x: x * 4 if x.ndim > 1 else x + 0.1 * np.cos(np.arange(x.size)), params
    )


@partial(jax.jit, static_argnums=0)
def _forward(model, params, batch):
    out = model.apply({"params": params}, batch, train=False)
    return out | {"logits": out["logits"].logits()}


def forward(model, params, batch):
    """Outputs without dropout, the logits computed."""
    return jax.tree.map(np.asarray, _forward(model, params, batch))


def loss(model, batch, params, key=3):
    """Mean squared logits under dropout: anything that reaches every parameter."""
    out = model.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(key)})
    logits = out["logits"].logits()[..., : model.size.vocab]
    return (logits * np.cos(np.arange(model.size.vocab))[None, None]).sum() / logits.size


def changed(batch, place, *, vocab=512):
    """The batch with another token at one place of every row."""
    tokens = batch["tokens"].copy()
    tokens[:, place] = (tokens[:, place] + 1) % vocab
    return batch | {"tokens": tokens}


def parameters(model) -> int:
    """Their number, without the padding of the vocabulary."""
    shapes = jax.eval_shape(lambda: init(model, make_batch())[0])
    size = model.size
    return sum(x.size for x in jax.tree.leaves(shapes)) - (-size.vocab % 128) * size.width
