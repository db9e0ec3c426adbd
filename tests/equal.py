"""When two computations, or two runs, count as the same."""

import hashlib
from pathlib import Path

import jax
import numpy as np

from flaxlm.named import path_name
from tests import runs


def assert_gradients_agree(found, expected, *, rtol: float = 1e-5) -> None:
    """Two trees of gradients are one but for rounding.

    Their distance is at most `rtol` of the norm of all; that of one parameter, which may be small
    beside the others, is a thousandth of its own.
    """
    found, expected = (
        {path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (found, expected))
    )
    assert found.keys() == expected.keys()
    apart = {name: np.linalg.norm(found[name] - expected[name]) for name in expected}
    own = {name: np.linalg.norm(leaf) for name, leaf in expected.items()}
    norm = np.linalg.norm([*own.values()])
    worst = max(apart, key=apart.get)
    distance = np.linalg.norm([*apart.values()])
    assert norm > 0 and np.isfinite(norm)
    assert distance <= rtol * norm, f"{distance / norm:.1e} of the norm, most of it in {worst}"
    for name in expected:
        assert apart[name] <= 1e-3 * own[name] + 0.1 * rtol * norm, (
            f"{name}: {apart[name]:.1e} apart, its norm is {own[name]:.1e}, that of all {norm:.1e}"
        )


def loss_column(directory: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training line of a run."""
    return [(line["step"], line["loss"]) for line in runs.metrics(directory)]


def assert_losses_agree(found: Path, expected: Path, *, atol: float = 1e-5) -> None:
    """Two runs, on whatever meshes, devices and processes, took the same steps with losses that
    differ by rounding alone.
    """
    found, expected = loss_column(found), loss_column(expected)
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose(
        [loss for _, loss in found], [loss for _, loss in expected], rtol=0, atol=atol
    )


def fingerprint(directory: Path, step: int) -> str:
    """sha256 of the whole state of a run after `step`, and of its losses until then."""
    found = hashlib.sha256()
    for array in runs.parameters(directory, step):
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    losses = [(at, loss) for at, loss in loss_column(directory) if at <= step]
    assert [at for at, _ in losses] == list(range(1, step + 1)), "a line of metrics.jsonl per step"
    found.update(repr(losses).encode())
    return found.hexdigest()
