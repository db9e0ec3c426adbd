"""What the tests of BERT's descendants share: goldens of tests/parity/make_electra.py, and runs."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np

from flaxlm import named
from flaxlm.convert import table

PARITY = Path(__file__).parent / "parity"


def load(name: str):
    """A module of tests/parity."""
    sys.path.insert(0, str(PARITY))
    try:
        spec = importlib.util.spec_from_file_location(name, PARITY / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(PARITY))


CASES = load("electra_cases")


def init(model, batch):
    """(parameters, {path: dim names})."""
    boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
    return named.unbox(boxed), named.axes_of(boxed)


def forward(model, params, batch):
    """Outputs without dropout, the logits computed."""

    def apply(params, batch):
        out = model.apply({"params": params}, batch, train=False)
        return out | {"logits": out["logits"].logits()} if "logits" in out else out

    return jax.tree.map(np.asarray, jax.jit(apply)(params, batch))


def read(family, model, tensors):
    """The parameters of a Hugging Face state, and a check that they give it back bit for bit."""
    entries = family.table(model)
    params = table.read(
        entries, tensors, ignored=family.IGNORED, aliases=family.ALIASES, prefix=family.PREFIX
    )
    back = table.write(entries, params)
    names = {name for name in tensors if name not in family.ALIASES}
    assert back.keys() == names
    assert all(np.array_equal(back[name], tensors[name]) for name in names)
    return params


def golden(file: str, case: str, tied: dict[str, str]):
    """(tensors, outputs) of a golden; `tied` names copies: {name: original}."""
    data = np.load(PARITY / f"{file}.npz")
    shapes = {
        key.removeprefix(f"{case}/shape/"): tuple(data[key])
        for key in data.files
        if key.startswith(f"{case}/shape/")
    }
    tensors = {name: CASES.tensor(tied.get(name, name), shape) for name, shape in shapes.items()}
    outputs = {
        key.removeprefix(f"{case}/out/"): data[key]
        for key in data.files
        if key.startswith(f"{case}/out/")
    }
    return tensors, outputs


def check(found, expected, batch, *, every=5, atol=1e-4):
    """Equal outputs where the input is not padding."""
    real = batch["segments"] > 0
    for name, wanted in expected.items():
        got = found[name]
        if wanted.ndim == 3:
            got, where = got[:, ::every, : wanted.shape[-1]], real[:, ::every]
        elif got.shape == real.shape:
            where = real
        else:
            where = slice(None)
        np.testing.assert_allclose(got[where], wanted[where], atol=atol, rtol=0, err_msg=name)


def parameters(model, vocab: int) -> int:
    """Parameters of the abstract tree, padding of the vocabulary left out."""
    batch = {
        name: np.zeros((1, 8), np.int32) for name in ("tokens", "segments", "positions", "types")
    }
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False)["params"])
    axes, total = named.axes_of(tree), 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(named.unbox(tree)):
        names = axes[named.path_name(path)]
        shape = [vocab if n == "vocab" else d for n, d in zip(names, leaf.shape, strict=True)]
        total += int(np.prod(shape, dtype=np.int64))
    return total
