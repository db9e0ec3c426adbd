"""MANIFEST.json of a checkpoint: what it holds, with size and checksum of every file.

The storage layer under a checkpoint restores a flipped bit as a wrong number without a word, and
casts a saved dtype to the wanted one in silence. The manifest is what turns both into errors.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flaxlm.errors import ConfigError, MissingInput

NAME = "MANIFEST.json"
FORMAT = 1

# Written when the directory is renamed into place, after the manifest. They hold no state.
_COMMIT_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_ROWS = 10  # differing arrays shown

Tree = Mapping[str, tuple[list[int], str]]  # path -> (shape, dtype)


class Damaged(Exception):
    """A checkpoint is incomplete or differs from its manifest. `str(error)` names the file."""


def write(directory: Path, facts: Mapping) -> dict:
    """Hash every file under `directory` and write `facts`, the files and a checksum of it all.

    Atomic (renamed into place) and durable (file and directory synced) when it returns. What is
    hashed is read back from the file system, so it is what the kernel was given to store.

    Raises:
      OSError: if a file cannot be read or the manifest cannot be written.
    """
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = sorted(str(path.relative_to(directory)) for path in paths)
    names = [name for name in names if name not in (*_COMMIT_MARKS, NAME)]
    with _pool() as pool:
        digests = list(pool.map(lambda name: _sha256(directory / name), names))
    files = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    manifest = {"format": FORMAT, **facts, "files": files}
    manifest["checksum"] = _checksum(manifest)
    partial = directory / (NAME + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / NAME)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return manifest


def read(directory: Path) -> dict:
    """The manifest of a checkpoint directory, itself verified.

    Raises:
      Damaged: if there is none, or it was altered.
    """
    try:
        manifest = json.loads((directory / NAME).read_text(encoding="utf-8"))
        claimed = manifest.pop("checksum")
        intact = _checksum(manifest) == claimed and manifest["format"] == FORMAT
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing (an interrupted copy)") from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise Damaged(f"{NAME} is not readable ({type(error).__name__})") from None
    if not intact:
        raise Damaged(f"{NAME} does not match its own checksum")
    return manifest


def verify(directory: Path, manifest: Mapping) -> None:
    """Compare every file with the manifest: all sizes first, which is instant, then checksums.

    Raises:
      Damaged: naming the first file that is missing, has another size, or other content.
    """
    files = manifest["files"]
    for name, entry in files.items():
        try:
            size = (directory / name).stat().st_size
        except OSError as error:
            raise Damaged(f"{name} cannot be found ({error.strerror})") from None
        if size != entry["bytes"]:
            raise Damaged(f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
    with _pool() as pool:
        digests = pool.map(lambda name: _sha256(directory / name), files)
        try:
            for (name, entry), digest in zip(files.items(), digests, strict=True):
                if digest != entry["sha256"]:
                    raise Damaged(f"{name} has the right size but other content (sha256 differs)")
        except OSError as error:
            raise Damaged(f"{error.filename} cannot be read ({error.strerror})") from None
        finally:
            pool.shutdown(cancel_futures=True)


def check_same(manifest: Mapping, *, identity: Mapping, tree: Tree, name: str) -> None:
    """Refuse a checkpoint of another vocabulary, other data, or a state of another form.

    Args:
      manifest: of the checkpoint.
      identity: of this run; all but "experiment" is compared, on both sides.
      tree: paths, shapes and dtypes of the state of this run.
      name: of the checkpoint, for messages.

    Raises:
      MissingInput: naming both sides.
      ConfigError: with a table of the first arrays that differ.
    """
    for key in sorted({*manifest["identity"], *identity} - {"experiment"}):
        before, now = manifest["identity"].get(key), identity.get(key)
        if before != now:
            raise MissingInput(
                f"{name} was made with another {key}: {before}, and this run has {now}; "
                f"give it the original {key}, or another run directory"
            )
    rows = differences(manifest["tree"], tree)
    if rows:
        width = max(len(path) for path, _, _ in rows[:_ROWS])
        table = [
            f"{path:<{width}}  saved {before}, now {now}" for path, before, now in rows[:_ROWS]
        ]
        if len(rows) > _ROWS:
            table.append(f"and {len(rows) - _ROWS} more")
        raise ConfigError(
            f"{name} holds another state ({len(rows)} arrays differ); resume with the model and "
            "optimizer it was saved with, or use another run directory:\n  " + "\n  ".join(table)
        )


def differences(saved: Tree, wanted: Tree) -> list[tuple[str, str, str]]:
    """(path, saved, wanted) of every array whose presence, shape or dtype differs, by path."""

    def describe(tree: Tree, path: str) -> str:
        if path not in tree:
            return "absent"
        shape, dtype = tree[path]
        return f"{dtype}[{','.join(map(str, shape))}]"

    paths = sorted({*saved, *wanted})
    sides = ((path, describe(saved, path), describe(wanted, path)) for path in paths)
    return [(path, before, now) for path, before, now in sides if before != now]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(manifest: Mapping) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _pool() -> ThreadPoolExecutor:
    # Hashing releases the interpreter lock; beyond 16 threads the disk is the limit.
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))
