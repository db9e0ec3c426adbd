"""MANIFEST.json of a checkpoint: what it holds, with size and checksum of every file.

The storage layer under a checkpoint restores a flipped bit as a wrong number without a word, and
casts a saved dtype to the wanted one in silence. The manifest is what turns both into errors.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from flaxlm.digests import Entry, digests
from flaxlm.errors import ConfigError, MissingInput

NAME = "MANIFEST.json"
FORMAT = 1

# Written when the directory is renamed into place, after the manifest. They hold no state.
_COMMIT_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_ROWS = 10  # differing arrays shown

Tree = Mapping[str, tuple[list[int], str]]  # path -> (shape, dtype)


class Damaged(Exception):
    """A checkpoint is incomplete or differs from its manifest. `str(error)` names the file."""


def write(directory: Path, facts: Mapping, known: Mapping[str, Entry] | None = None) -> dict:
    """Write `facts`, size and checksum of every file under `directory`, and a checksum of it all.

    Atomic (renamed into place) and durable (file and directory synced) when it returns. What is
    hashed is read back from the file system, so it is what the kernel was given to store. What was
    written is looked at once more: the manifest is read and every size compared.

    Args:
      known: {name: entry} of files that were hashed already; the others are hashed here.

    Raises:
      OSError: if a file cannot be read, has changed, or the manifest cannot be written.
    """
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = sorted(str(path.relative_to(directory)) for path in paths)
    names = [name for name in names if name not in (*_COMMIT_MARKS, NAME)]
    known = known or {}
    files = known | digests(directory, [name for name in names if name not in known])
    manifest = {"format": FORMAT, **facts, "files": dict(sorted(files.items()))}
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
    try:
        check_sizes(directory, read(directory))
    except Damaged as damage:
        raise OSError(errno.EIO, f"{directory} was written and is damaged: {damage}") from None
    return manifest


def read(directory: Path, *needs: str) -> dict:
    """The manifest of a checkpoint directory, itself verified.

    Args:
      needs: facts that must be in it, see `_FORMS`.

    Raises:
      Damaged: if there is none, it was altered, or it is not of the form that `write` gives it.
    """
    try:
        manifest = json.loads((directory / NAME).read_text(encoding="utf-8"))
        claimed = manifest.pop("checksum")
        intact = _checksum(manifest) == claimed and manifest["format"] == FORMAT
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing (an interrupted copy)") from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise Damaged(f"{NAME} is not readable ({type(error).__name__})") from None
    if not intact:
        raise Damaged(f"{NAME} does not match its own checksum")
    for name in ("files", *needs):
        # The checksum is no secret: whoever made the folder can have written one that matches.
        if name not in manifest or not _FORMS[name](manifest[name]):
            raise Damaged(f"{NAME} has no {name!r} of the right form")
    return manifest


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _is_table(value, check: Callable[[str, Any], bool]) -> bool:
    return isinstance(value, dict) and all(check(name, item) for name, item in value.items())


def _is_file(name: str, entry) -> bool:
    """Whether an entry is of a file below the directory: no other is opened."""
    return (
        not PurePath(name).is_absolute()
        and ".." not in PurePath(name).parts
        and name.isprintable()
        and len(name) <= 1024
        and isinstance(entry, dict)
        and set(entry) == {"bytes", "crc32"}
        and _is_count(entry["bytes"])
        and isinstance(entry["crc32"], str)
    )


def _is_array(name: str, entry) -> bool:
    pair = isinstance(entry, list) and len(entry) == 2
    return (
        pair
        and isinstance(entry[0], list)
        and all(map(_is_count, entry[0]))
        and isinstance(entry[1], str)
    )


_FORMS = {
    "files": lambda value: _is_table(value, _is_file),
    "tree": lambda value: _is_table(value, _is_array),
    "mesh": lambda value: _is_table(value, lambda name, size: _is_count(size)),
    "identity": lambda value: isinstance(value, dict),
    "metrics": lambda value: _is_table(value, lambda name, number: _is_number(number)),
    "time": lambda value: _is_number(value),
    "step": _is_count,
    "sentinels": _is_count,
}


def verify(directory: Path, manifest: Mapping) -> None:
    """Compare every file with the manifest: all sizes first, which is instant, then checksums.

    Raises:
      Damaged: naming the first file that is missing, has another size, or other content.
    """
    check_sizes(directory, manifest)
    check_contents(directory, manifest)


def check_sizes(directory: Path, manifest: Mapping) -> None:
    """The instant half of `verify`."""
    for name, entry in manifest["files"].items():
        try:
            found = (directory / name).stat()
        except OSError as error:
            raise Damaged(f"{name} cannot be found ({error.strerror})") from None
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device has no end
            raise Damaged(f"{name} is no file")
        if found.st_size != entry["bytes"]:
            raise Damaged(f"{name} has {found.st_size:,} bytes instead of {entry['bytes']:,}")


def check_contents(directory: Path, manifest: Mapping, *, part: int = 0, of: int = 1) -> None:
    """The half of `verify` that reads all bytes, or one of `of` parts of it."""
    files = manifest["files"]
    by_size = sorted(files, key=lambda name: files[name]["bytes"], reverse=True)
    try:
        for name, found in digests(directory, by_size[part::of]).items():
            if found != files[name]:
                raise Damaged(f"{name} has the right size but other content (CRC-32 differs)")
    except OSError as error:
        raise Damaged(f"{error.filename} cannot be read ({error.strerror})") from None


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
    # "vocab" before "data": of another vocabulary the data are others too, and it is the cause.
    for key in sorted({*manifest["identity"], *identity} - {"experiment"}, reverse=True):
        before, now = manifest["identity"].get(key), identity.get(key)
        if before != now:
            raise MissingInput(
                f"{name} was made with another {_line(key)}: {_line(before)}, and this run has "
                f"{_line(now)}; give it the original {_line(key)}, or another run directory"
            )
    rows = differences(manifest["tree"], tree)
    if rows:
        width = max(len(_line(path)) for path, _, _ in rows[:_ROWS])
        table = [
            f"{_line(path):<{width}}  saved {_line(before)}, now {_line(now)}"
            for path, before, now in rows[:_ROWS]
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


def _line(value) -> str:
    """A value out of a file on one line of at most 200 letters."""
    return " ".join(str(value).split())[:200]


def _checksum(manifest: Mapping) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
