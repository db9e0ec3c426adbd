"""Running `flaxlm.train` from tests: in this process, or in one that can be killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "experiments" / "tiny_span.py")


def arguments(text: Path, directory: Path, *overrides: str) -> list[str]:
    """The command line of the tiny experiment on a text file."""
    return [
        "--experiment",
        TINY,
        f"--data.sources.0.uri=text:{text}",
        f"--run.directory={directory}",
        *overrides,
    ]


def environment(cache: Path, *, devices: int = 1, **extra: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "FLAXLM_CACHE": str(cache),
        **extra,
    }


def start(argv: list[str], cache: Path, *, folder: Path = ROOT, **env) -> subprocess.Popen:
    """The command, started in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "flaxlm.train", *argv],
        cwd=folder,
        env=environment(cache, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics(directory: Path, kind: str = "train") -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def parameters(directory: Path, step: int) -> list[np.ndarray]:
    """The arrays of a checkpoint, in the order of their paths; on whatever devices it was made."""
    path = directory / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=kinds))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [np.asarray(leaf) for _, leaf in sorted(leaves, key=lambda pair: str(pair[0]))]
