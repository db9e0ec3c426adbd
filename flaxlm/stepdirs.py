"""The steps of a run on disk: which are complete, what is wrong with the others.

<step>                         complete, with a manifest
<step>.orbax-checkpoint-tmp    a save in flight, or what a kill left of one
<step>.corrupt                 set aside, as it did not match its manifest; never read again
"""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from flaxlm import manifest
from flaxlm.errors import StorageError
from flaxlm.processes import any_text, from_first

log = logging.getLogger(__name__)

_PARTIAL = ocp.utils.TMP_DIR_SUFFIX


class StepDirs:
    """The folders in the directory of checkpoints `directory`."""

    def __init__(self, directory: Path):
        self.directory = directory

    def path(self, step: int) -> Path:
        """Where a complete step is."""
        return self.directory / str(step)

    def complete(self) -> list[int]:
        """Steps with a manifest, newest last; not a byte of them is read."""
        return [step for step in self.numbered() if (self.path(step) / manifest.NAME).exists()]

    def numbered(self) -> list[int]:
        """Folders named by a step, newest last."""
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def in_flight(self, step: int) -> Path:
        """Where the save of a step is being written."""
        (found,) = self.directory.glob(f"{step}{_PARTIAL}*")
        return found

    def remove_partial(self, step: int | str = "*") -> list[Path]:
        """Remove what is left of an unfinished save, or of all; returns what it was."""
        paths = sorted(self.directory.glob(f"{step}{_PARTIAL}*"))
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
        return paths

    def tidy(self, *, keep: int) -> None:
        """Remove what a kill left of saves and deletions; set aside what else is incomplete.

        Args:
          keep: newest steps that nobody deletes.
        """
        for path in self.remove_partial():
            log.warning("removed %s, left by a save that was interrupted", path)
        complete = self.complete()
        for step in sorted({*self.numbered()} - {*complete}):
            if sum(step < newer for newer in complete) >= keep:
                shutil.rmtree(self.path(step), ignore_errors=True)
                log.warning("removed %s, whose deletion was interrupted", self.path(step))
            else:
                self.set_aside(step, f"it has no {manifest.NAME} (an interrupted copy)")

    def set_aside(self, step: int, damage: str) -> None:
        """Give a damaged step another name, and say so."""
        count = len(list(self.directory.glob(f"{step}.corrupt*")))
        path = self.directory / (f"{step}.corrupt" + (f"-{count + 1}" if count else ""))
        self.path(step).rename(path)
        log.warning("checkpoint %d is damaged: %s; kept as %s and not used", step, damage, path)

    def newest_verified(
        self, *, identity: Mapping, tree: manifest.Tree, mesh: Mapping
    ) -> int | None:
        """The newest step of which every byte matches; those above it are set aside. None if there
        is no step at all. Collective: every process reads a share.

        Raises:
          ConfigError, MissingInput: see `manifest.check_same`.
          StorageError: if there are only damaged steps.
        """
        for step in reversed(from_first(self.numbered)):
            # What is instant is looked at before gigabytes are read.
            look = partial(self._look_at, step, identity=identity, tree=tree, mesh=mesh)
            if not (damage := from_first(look) or any_text(self._read_share(step))):
                return step
            from_first(partial(self.set_aside, step, damage))
        from_first(self._check_none_damaged)
        return None

    def _look_at(self, step: int, *, identity, tree: manifest.Tree, mesh: Mapping) -> str:
        """What is wrong with a step, as far as its manifest and the sizes say; "" if nothing."""
        path = self.path(step)
        try:
            found = manifest.read(path, "step", "identity", "tree", "mesh")
            if found["step"] != step:
                return f"{manifest.NAME} is of step {found['step']}"
            manifest.check_same(found, identity=identity, tree=tree, name=f"checkpoint {path}")
            manifest.check_sizes(path, found)
        except manifest.Damaged as damage:
            return str(damage)
        if found["mesh"] != mesh:
            log.info("step %d was saved on mesh %s, now %s", step, found["mesh"], mesh)
        return ""

    def _read_share(self, step: int) -> str:
        """Compare this process's share of the bytes; what is wrong with them, "" if nothing."""
        part, of = jax.process_index(), jax.process_count()
        try:
            found = manifest.read(self.path(step))
            manifest.check_contents(self.path(step), found, part=part, of=of)
        except manifest.Damaged as damage:
            return str(damage)
        return ""

    def _check_none_damaged(self) -> None:
        damaged = ", ".join(sorted(path.name for path in self.directory.glob("*.corrupt*")))
        if damaged:
            raise StorageError(
                f"no checkpoint in {self.directory} verifies, there are only {damaged}: put back "
                "a copy, or remove them to start again from step 0"
            )
