"""The run directory: whose it is, and what lies in it from the first second.

experiment.json    the resolved experiment, complete
experiment.py      the file that declared it
command.txt        how the run was started, a line for every start
environment.json   versions and devices
vocab.model        the vocabulary, whatever its kind
metrics.jsonl, tensorboard/, checkpoints/, evaluation.json, samples.txt, RUN.lock
"""

import contextlib
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax

from flaxlm import __version__
from flaxlm.data.files import write_whole
from flaxlm.errors import RunDirError
from flaxlm.lock import RunLock, prepare_run_dir
from flaxlm.overrides import check_same_run, to_json
from flaxlm.processes import from_first

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


@contextlib.contextmanager
def open_run(loaded) -> Iterator[tuple[Path, RunLock]]:
    """Make or continue the run directory of an experiment, and hold its lock. Collective.

    Args:
      loaded: an `experiment.Loaded`, overrides applied.

    Yields:
      The absolute path, and the lock, whose `check` says before a write whether it is still held.

    Raises:
      RunDirError: it cannot be written, or another process holds it.
      ConfigError: it belongs to another experiment.
    """
    path = loaded.experiment.run.directory or f"runs/{loaded.name}"
    directory = Path(from_first(lambda: str(prepare_run_dir(path))))
    with RunLock(directory) as lock:
        from_first(lambda: _write_identity(directory, loaded))
        yield directory, lock


def keep_vocab(directory: Path, vocab) -> None:
    """Leave the vocabulary in the run directory, so that the run can be used without its data.
    Collective.

    Raises:
      StorageError: it cannot be written.
    """
    path = directory / "vocab.model"
    from_first(lambda: None if path.exists() else write_whole(path, vocab.model))


def has_checkpoints(directory: Path) -> bool:
    """Whether a run directory has steps, damaged ones included. Collective."""
    steps = directory / "checkpoints"
    return from_first(lambda: any(path.name.isdecimal() for path in steps.glob("*")))


def write_json(path: Path, value) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def _write_identity(directory: Path, loaded) -> None:
    described, file = to_json(loaded.experiment), directory / "experiment.json"
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise RunDirError(
                f"{file} is not readable JSON ({error}); give another --run.directory"
            ) from None
        check_same_run(before, described, directory=directory)
    write_json(file, described)
    (directory / "experiment.py").write_text(loaded.source, encoding="utf-8")
    with open(directory / "command.txt", "a", encoding="utf-8") as commands:
        commands.write(shlex.join([Path(sys.executable).name, *sys.argv]) + "\n")
    environment = {
        "flaxlm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in _PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }
    write_json(directory / "environment.json", environment)
