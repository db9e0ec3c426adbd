"""Checkpoints: asynchronous, atomic, verified, and never half believed.

A step is written to a temporary directory, its manifest (size and checksum of every file) is
written into that same directory, and one rename makes both visible. So a directory named by a step
number either is complete and has a manifest, or was tampered with: a kill leaves nothing in
between. Resuming takes the newest step whose every byte still matches; a damaged one is reported
and set aside under another name. Which steps stay is decided in retention.py.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

import flaxlm
from flaxlm import digests, manifest
from flaxlm.errors import StorageError
from flaxlm.lock import prepare_run_dir
from flaxlm.named import path_name
from flaxlm.processes import check_shared, from_first
from flaxlm.retention import Retention, Saved
from flaxlm.stepdirs import StepDirs

log = logging.getLogger(__name__)

_STATE = "state"  # the item of a step that holds the arrays
_MISSES = 3  # consecutive saves that may fail before the run stops

# Full and broken storage reaches Python as a ValueError or RuntimeError with one of these texts.
_STORAGE = re.compile(
    "RESOURCE_EXHAUSTED|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|OS error|errno"
    "|no space|file too large|disk quota|input/output error|timed out",
    re.IGNORECASE,
)
# Such a text names its cause in the middle of much else, in no fixed order; the number is certain.
_CAUSE = re.compile(r"os_error_code='?(\d+)")


class Checkpoints:
    """The checkpoints of one run, in one directory that all its processes see.

    Construction, `save`, `restore`, `wait` and `close` are collective: every process calls them, in
    the same order. A context manager; leaving it waits for the save in flight.

    Args:
      directory: made if missing; a relative path is made absolute.
      keep: newest steps kept, at least 1.
      hours: the first step of every so many hours is kept too, see `Retention`.
      best: and the best by a metric, "min loss".
      identity: JSON values stored in every manifest, among them "vocab" (sha256) and "data"
        (fingerprint): `restore` refuses a step that was made with others.

    Attributes:
      failures: saves that have failed since the last good one.
      seconds: of the latest save: "stall" that `save` blocked for, "total" until the step was
        complete, of which "hash" for the manifest and the files that were not hashed while others
        were written (both on process 0 only).

    Raises:
      RunDirError: if the directory cannot be written, or is not shared by all processes.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int,
        identity: Mapping,
        hours: float = 0.0,
        best: str = "",
    ):
        self._retention = Retention(keep, hours, best)
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(quiet)
        self.directory = prepare_run_dir(directory)
        self.identity = dict(identity)
        self._saved: dict[int, Saved] = {}  # what is known of steps on disk
        self.failures = 0
        self.seconds: dict[str, float] = {}
        self._facts: dict = {}  # for the manifest of the save in flight
        self._began = 0.0
        self._last_failure = ""
        check_shared(self.directory)
        self._disk = StepDirs(self.directory)
        from_first(partial(self._disk.tidy, keep=keep))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Keeping(self._kept),
                save_root_metadata=False,
                # Called on process 0 when the files of all processes are complete, before the
                # rename. Were it later, a kill between the two would leave an unverifiable step.
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._certify),
            ),
        )

    def save(
        self,
        step: int,
        state,
        *,
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Save a tree of `jax.Array`s; returns when the arrays may be donated.

        Blocks until the save before it is finished. A save that fails for want of storage is
        dropped, logged and counted while training goes on; older steps are untouched. A step that
        is already on disk is not written again.

        Args:
          metrics: of the evaluation of this state, if there was one; kept in the manifest.
          wait: return when the step is complete on disk.

        Raises:
          StorageError: at the third failure in a row, or with `wait`, if this save failed.
        """
        self._finish()
        if step not in self.steps():
            self._began = time.monotonic()
            self.seconds = {}
            facts = {"step": step, "time": time.time(), "metrics": dict(metrics or {})}
            self._saved[step] = Saved(**facts)
            self._facts = {**facts, "identity": self.identity, **_facts(state)}
            item = ocp.args.Composite(**{_STATE: digests.Save(state)})
            try:
                self._check_free(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
                self._manager.save(step, args=item, force=True)
            except Exception as error:
                self._failed(error)
            self.seconds["stall"] = time.monotonic() - self._began
        if wait:
            self.wait()

    def steps(self) -> list[int]:
        """Complete steps on disk, newest last. `restore` alone reads and verifies every byte."""
        return self._disk.complete()

    def before(self, step: int) -> list[int]:
        """Complete steps below `step`, after the save in flight. Collective."""
        self._finish()
        return from_first(lambda: [older for older in self.steps() if older < step])

    def discard(self, *, after: int) -> None:
        """Remove all steps above `after`: the run goes on from there. Collective."""
        self._finish()

        def remove():
            for step in self._disk.numbered():
                if step > after:
                    shutil.rmtree(self._disk.path(step))

        from_first(remove)
        self._manager.reload()

    def restore(self, abstract_state):
        """The newest step that verifies, as (state, step); None if there is no checkpoint.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, on any mesh: number of
            devices and of processes may differ from those of the save.

        Raises:
          ConfigError: if tree, shapes or dtypes differ from the saved ones; nothing is cast.
          MissingInput: if the step was made with another vocabulary or other data.
          StorageError: if there are only damaged steps.
        """
        self._finish()
        step = self._disk.newest_verified(
            identity=self.identity, tree=_tree(abstract_state), mesh=_mesh(abstract_state)
        )
        self._manager.reload()  # steps may have been set aside
        if step is None:
            return None
        # Not through the manager: it would need the commit marks, which no checksum covers.
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self._disk.path(step) / _STATE, abstract_state), step

    def wait(self) -> None:
        """Block until the save in flight is on disk with its manifest.

        Raises:
          StorageError: if the latest save failed.
        """
        self._finish()
        if self.failures:
            raise StorageError(f"{self._last_failure}; complete on disk: {self.steps() or 'none'}")

    def close(self) -> None:
        """`wait`, then release the threads, also when it raises."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except StorageError:
            if kind is None:
                raise  # else the first error is the one to report; this one was logged

    # Saving

    def _certify(self) -> None:
        """Write the manifest of the save in flight into its temporary directory."""
        began = time.monotonic()
        directory = self._disk.in_flight(self._facts["step"])
        known, waited = digests.take(directory / _STATE)
        known = {f"{_STATE}/{name}": entry for name, entry in known.items()}
        manifest.write(directory, self._facts, known)
        now = time.monotonic()
        self.seconds["hash"] = waited + now - began
        self.seconds["total"] = now - self._began

    def _check_free(self, needed: int) -> None:
        # Asked first, because a file system that is full is full for metrics and logs as well.
        free = from_first(lambda: shutil.disk_usage(self.directory).free)
        if free < needed:
            have, want = free / 2**30, needed / 2**30
            raise OSError(errno.ENOSPC, f"{want:.2f} GiB needed, {have:.2f} GiB free")

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)
        if self._facts:
            self.failures, self._facts = 0, {}

    def _failed(self, error: Exception) -> None:
        """Count a failure of the storage and remove what it left; any other error is a defect."""
        if not isinstance(error, OSError) and not _STORAGE.search(str(error)):
            raise error
        text = " ".join(str(error).split())
        cause = _CAUSE.search(text)
        reason = os.strerror(int(cause[1])) if cause else text[:300]
        step, self._facts = self._facts["step"], {}
        self.failures += 1
        if jax.process_index() == 0:
            self._disk.remove_partial(step)  # it may be what fills the disk
        self._manager.reload()  # it counts this step, and no longer those that were to go for it
        self._last_failure = f"checkpoint {step} could not be saved in {self.directory}: {reason}"
        log.warning("%s (failure %d of %d)", self._last_failure, self.failures, _MISSES)
        if self.failures >= _MISSES:
            raise StorageError(f"{self._last_failure}; {_MISSES} failures in a row")

    def _kept(self, stored: Sequence[int]) -> set[int]:
        return self._retention.kept(self._known(step) for step in stored)

    def _known(self, step: int) -> Saved:
        if step not in self._saved:
            try:
                found = manifest.read(self._disk.path(step), "time", "metrics")
                self._saved[step] = Saved(step, found["time"], found["metrics"])
            except manifest.Damaged:  # for `restore` to find, if it is ever wanted
                return Saved(step)
        return self._saved[step]


@dataclass(frozen=True)
class _Keeping(ocp.checkpoint_managers.PreservationPolicy):
    """The library asks it while a save is in flight, and removes the others when that is done."""

    kept: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints, *, context):
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _tree(state) -> dict[str, tuple[list[int], str]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): (list(x.shape), str(np.dtype(x.dtype))) for path, x in leaves}


def _mesh(state) -> dict[str, int]:
    """Axis sizes of the mesh the arrays are on; {} on a single device without a mesh."""
    shardings = (leaf.sharding for leaf in jax.tree.leaves(state))
    named = (x for x in shardings if isinstance(x, jax.sharding.NamedSharding))
    return next((dict(sharding.mesh.shape) for sharding in named), {})


def _facts(state) -> dict:
    """What a manifest says beside step, identity and files."""
    return {
        "tree": _tree(state),
        "mesh": _mesh(state),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": jax.devices()[0].platform,
        "versions": {
            "flaxlm": flaxlm.__version__,
            "jax": jax.__version__,
            "orbax-checkpoint": version("orbax-checkpoint"),
        },
    }


def quiet(record: logging.LogRecord) -> bool:
    """Keep Orbax's own lines and tracebacks for debugging: what matters is reported here."""
    theirs = "orbax" in record.pathname or "orbax" in record.getMessage()
    return not theirs or log.isEnabledFor(logging.DEBUG)
