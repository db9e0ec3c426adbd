"""What the tests of the encoder families share: batches, forward passes, and checks that are the
same for each of them.
"""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxlm import named, safetensors
from flaxlm.convert import table
from flaxlm.losses import cross_entropy
from flaxlm.nn.compute import Compute

PARITY = Path(__file__).parent / "parity"


def load(name: str):
    """A module of tests/parity."""
    sys.path.insert(0, str(PARITY))
    try:
        spec = importlib.util.spec_from_file_location(name, PARITY / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(PARITY))
    return module


CASES = load("bert_cases")


def cases(*families: str) -> list[str]:
    """Names of the goldens of some families."""
    return [name for name in CASES.CONFIGS if name.split("_")[0] in families]


def make_batch(rows=2, length=12, vocab=500, seed=0):
    rng = np.random.default_rng(seed)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {
        "tokens": rng.integers(0, vocab, (rows, length)).astype(np.int32),
        "segments": np.ones((rows, length), np.int32),
        "positions": positions,
        "types": (positions > length // 2).astype(np.int32),
    }


def init(model, batch=None):
    """(parameters, their dim names)."""
    batch = make_batch() if batch is None else batch
    boxed = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False)["params"])()
    return named.unbox(boxed), named.axes_of(boxed)


def shapes(model) -> dict[str, tuple[int, ...]]:
    """{parameter path: shape}, nothing computed."""
    batch = make_batch()
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(named.unbox(tree))
    return {named.path_name(path): leaf.shape for path, leaf in leaves}


def count(model, *, without: tuple[str, ...] = ()) -> int:
    """Parameters, the padding of the vocabulary not counted; `without` names top-level parts."""
    total = 0
    for path, shape in shapes(model).items():
        if path.split("/")[0] in without:
            continue
        if path in ("embed/tokens/table", "head/bias"):
            shape = (model.size.vocab, *shape[1:])
        total += int(np.prod(shape))
    return total


def forward(model, params, batch):
    """Outputs without dropout, the logits computed."""

    def apply(params, batch):
        out = model.apply({"params": params}, batch, train=False)
        return out | ({"logits": out["logits"].logits()} if "logits" in out else {})

    return jax.tree.map(np.asarray, jax.jit(apply)(params, batch))


def assert_equal(found: dict, expected: dict, segments: np.ndarray, step: int = 1) -> None:
    """Every expected output is found at all positions that are not padding, to 1e-4."""
    assert found.keys() >= expected.keys()
    where = segments[:, ::step] > 0
    for name, theirs in expected.items():
        ours = found[name]
        if theirs.ndim == 3:
            ours, theirs = ours[:, ::step, : theirs.shape[-1]][where], theirs[where]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=name)
        assert np.abs(theirs).max() > 0.1, "the case is too quiet to find a mistake"


def read(family, model, tensors):
    return table.read(
        family.table(model), tensors, ignored=family.IGNORED, aliases=family.ALIASES,
        prefix=family.PREFIX,
    )  # fmt: skip


def check_golden(family, name: str) -> tuple[dict, dict, dict]:
    """The stored outputs come from the stored inputs; the config comes back.

    Returns:
      tensors, parameters, tensors written again.
    """
    config, data = CASES.CONFIGS[name], np.load(PARITY / f"{name}.npz")
    part = {
        start: {k.removeprefix(start): data[k] for k in data.files if k.startswith(start)}
        for start in ("input/", "shape/")
    }
    tensors = {name: CASES.tensor(name, tuple(shape)) for name, shape in part["shape/"].items()}
    model = family.model_of(config)
    params = read(family, model, tensors)
    found = forward(model, params, part["input/"])
    if "logits" in found:
        assert (found["logits"][..., model.size.vocab :] < -1e29).all()
    expected = {name: data[name] for name in data.files if "/" not in name}
    assert_equal(found, expected, part["input/"]["segments"], 5)

    written = family.config_of(model)
    assert {name: written[name] for name in config} == config | {
        "architectures": written["architectures"]
    }
    assert family.model_of(written) == model
    return tensors, params, table.write(family.table(model), params)


def check_live(family, config: dict, folder: Path) -> None:
    """Outputs equal those of transformers as installed, both ways: their weights here, and ours in
    their class.
    """
    pytest.importorskip("torch", reason="needs the parity extra: torch")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    make = load("make_bert")
    theirs, batch = make.build(config), CASES.inputs(config, seed=5)
    model = family.model_of(config)
    params = read(family, model, make.weights(theirs))
    expected = make.outputs(theirs, batch)
    assert_equal(forward(model, params, batch), expected, batch["segments"])

    (folder / "config.json").write_text(json.dumps(family.config_of(model)))
    safetensors.write(folder / safetensors.NAME, table.write(family.table(model), params))
    named = getattr(transformers, config["architectures"][0])
    again, problems = named.from_pretrained(folder, output_loading_info=True)
    assert not problems["unexpected_keys"] and not problems["mismatched_keys"]
    assert all("embed_positions" in name for name in problems["missing_keys"]), problems
    for name, array in make.outputs(again.eval(), batch).items():
        where = batch["segments"] > 0
        a, b = (x[where] if x.ndim == 3 else x for x in (array, expected[name]))
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def loss_and_gradient(model):
    """Of the tokens themselves, dropout on."""

    def loss(params, batch):
        rngs = {"dropout": jax.random.key(3)}
        out = model.apply({"params": params}, batch, train=True, rngs=rngs)
        total = cross_entropy(out["logits"], batch["tokens"])[0].mean()
        return total + (out["pair_logits"] ** 2).mean() if "pair_logits" in out else total

    return jax.value_and_grad(loss)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


def check_computes(model, *computes: Compute) -> None:
    """Loss and gradients do not depend on how they are computed, dropout included."""
    batch = make_batch(rows=2, length=8, vocab=model.size.vocab)
    params, _ = init(model, batch)
    expected = jax.jit(loss_and_gradient(model))(params, batch)
    for compute in computes:
        step = jax.jit(loss_and_gradient(model.clone(compute=compute)))
        assert_same(step(params, batch), expected)


def check_padding(model) -> None:
    """What stands on padding does not matter, nor how much of it there is."""
    params, _ = init(model)
    short = make_batch(vocab=model.size.vocab)
    long = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in short.items()}
    long["tokens"][:, 12:] = 3
    expected, found = forward(model, params, short), forward(model, params, long)
    for name, array in expected.items():
        ours = found[name][:, : array.shape[1]] if array.ndim == 3 else found[name]
        np.testing.assert_allclose(ours, array, atol=2e-5)


def check_packed(model) -> None:
    """Two texts in one row are as two rows."""
    params, _ = init(model)
    one, two = (make_batch(1, n, model.size.vocab, seed=n) for n in (9, 5))
    packed = {k: np.concatenate([one[k], two[k] + (k == "segments")], axis=1) for k in one}
    found = forward(model, params, packed)
    for batch, at in ((one, 0), (two, 9)):
        expected = forward(model, params, batch)["hidden"]
        got = found["hidden"][:, at : at + expected.shape[1]]
        np.testing.assert_allclose(got, expected, atol=2e-5)
