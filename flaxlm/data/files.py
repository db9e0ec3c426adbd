"""Files that appear whole or not at all, and folders that one process works on at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from flaxlm.errors import StorageError


def write_whole(path: Path, content: bytes | Callable) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename: readers see all of it
    or nothing.

    Args:
      path: the file to make or replace.
      content: bytes, or a function that writes to the binary file it is given.

    Raises:
      StorageError: naming the file and the system's reason, for instance a full disk.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def digest(content: bytes | Path) -> str:
    """sha256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(value) -> str:
    """20 hexadecimal digits that name `value` (anything JSON can write) in a cache."""
    return digest(json.dumps(value, sort_keys=True).encode())[:20]


def cache_folder() -> Path:
    """Where vocabularies and corpora made for a run are kept: $FLAXLM_CACHE, else the user's cache
    folder.
    """
    if own := os.environ.get("FLAXLM_CACHE"):
        return Path(os.path.expanduser(own))
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "flaxlm"


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; wait for whoever holds it. A killed holder
    frees it.

    Raises:
      StorageError: the lock file cannot be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"data: waiting for the process that holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
