"""Size and checksum of the files of a checkpoint, taken while the later ones are being written.

CRC-32 finds every single flipped bit, and any other damage but for one chance in four billion. It
is no protection against malice, and twice as fast as a cryptographic hash that would not be one
either, as whoever can change a file can change the manifest.
"""

import dataclasses
import json
import os
import threading
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint as ocp

Entry = dict[str, int | str]  # {"bytes": size, "crc32": eight hexadecimal digits}

# Data is written in so many files, so that one can be hashed while the next is written, but in none
# that is smaller or larger than these.
_FILES = 64
_SMALLEST, _LARGEST = 16 << 20, 1 << 30

_NAME = "DIGESTS."  # and the number of a process; there until the manifest is written
_PAUSE = 0.02  # seconds between looks at the directory
_READ = 1 << 20


def digest(path: Path) -> Entry:
    """Size and checksum of a file, as read back from the file system."""
    size, crc = 0, 0
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(_READ))
        while count := file.readinto(buffer):
            size, crc = size + count, zlib.crc32(buffer[:count], crc)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def digests(directory: Path, names: Iterable[str]) -> dict[str, Entry]:
    """{name: entry} of files below a directory, several at a time.

    Raises:
      OSError: if one cannot be read.
    """
    names = list(names)
    with pool() as threads:
        found = threads.map(lambda name: digest(directory / name), names)
        try:
            return dict(zip(names, found, strict=True))
        finally:
            threads.shutdown(cancel_futures=True)


def pool() -> ThreadPoolExecutor:
    """Threads that hash: it releases the interpreter lock; beyond 16 the disk is the limit."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def take(directory: Path) -> tuple[dict[str, Entry], float]:
    """What the processes have left about their own files below `directory`, which is removed;
    and for how many seconds the slowest was still hashing when its files were written.
    """
    entries: dict[str, Entry] = {}
    seconds = 0.0
    for path in sorted(directory.glob(f"{_NAME}*")):
        found = json.loads(path.read_text(encoding="utf-8"))
        entries, seconds = entries | found["entries"], max(seconds, found["seconds"])
        path.unlink()
    return entries, seconds


class _Following:
    """A future of the storage library: the writing of this process, and the hashing behind it."""

    def __init__(self, directory: Path, futures):
        self._directory, self._futures = Path(directory), futures
        self._own = self._directory / f"ocdbt.process_{jax.process_index()}"
        self._found: dict[str, tuple[tuple[int, int], Entry]] = {}
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="digests", daemon=True)
        self._thread.start()

    def result(self, timeout=None):
        """Wait until the files of this process are written and hashed."""
        try:
            for future in self._futures:
                future.result(timeout)
            began = time.monotonic()
        finally:
            self._written.set()
            self._thread.join()
        self._hash(self._stats(self._own))
        entries = {name: entry for name, (_, entry) in self._found.items()}
        found = {"entries": entries, "seconds": time.monotonic() - began}
        path = self._directory / f"{_NAME}{jax.process_index()}"
        path.write_text(json.dumps(found), encoding="utf-8")

    def cancel(self):
        """Nothing waits for what is still to be hashed."""
        self._written.set()
        for future in self._futures:
            future.cancel()

    def _follow(self) -> None:
        before: dict[str, tuple[int, int]] = {}
        while not self._written.wait(_PAUSE):
            try:
                now = self._stats(self._own / "d")  # what is complete there stays as it is
                self._hash({name: now[name] for name in now if now[name] == before.get(name)})
            except OSError:  # a file that was renamed; the last look finds it
                continue
            before = now

    def _stats(self, place: Path) -> dict[str, tuple[int, int]]:
        """{name: (time of the last change, bytes)} of all files below `place`."""
        paths = [Path(folder, file) for folder, _, files in os.walk(place) for file in files]
        stats = ((str(path.relative_to(self._directory)), path.stat()) for path in paths)
        return {name: (found.st_mtime_ns, found.st_size) for name, found in stats}

    def _hash(self, stats: dict[str, tuple[int, int]]) -> None:
        """Hash what is new, and what has changed since it was hashed; forget what is gone."""
        self._found = {
            name: (known, entry)
            for name, (known, entry) in self._found.items()
            if stats.get(name) == known and known[1] == entry["bytes"]
        }
        new = digests(self._directory, stats.keys() - self._found.keys())
        self._found |= {name: (stats[name], entry) for name, entry in new.items()}


class _Handler(ocp.PyTreeCheckpointHandler):
    """Writes arrays in files that are hashed one after the other."""

    async def async_save(self, directory, *arguments, **options):
        futures = await super().async_save(directory, *arguments, **options)
        return [_Following(directory, futures)]


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)  # it wants both
@dataclasses.dataclass
class Save(ocp.args.PyTreeSave):
    """The argument of a save whose files are hashed while they are written: `Save(tree)`."""

    def __post_init__(self):
        super().__post_init__()
        own = sum(leaf.nbytes for leaf in jax.tree.leaves(self.item)) // jax.process_count()
        self.ocdbt_target_data_file_size = min(max(own // _FILES, _SMALLEST), _LARGEST)
