"""The files of a prepared corpus against its manifest: nothing is read that is not as it was made.

The manifest holds size, sha256 and number of records of every file, and a checksum of itself. At
the start of a run every byte is compared with it once on each machine, and again when a file's
size, time or inode has changed; otherwise sizes are.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flaxlm.data.files import alone, digest, key, write_whole
from flaxlm.errors import DataError, MissingInput

FORMAT = 3
MANIFEST = "MANIFEST.json"
_TOLD = 1 << 30  # bytes from which it takes long enough to say so


def checksum(manifest: dict) -> str:
    """sha256 of all that a manifest says but its own checksum."""
    facts = {name: value for name, value in manifest.items() if name != "checksum"}
    return digest(json.dumps(facts, sort_keys=True).encode())


def read_manifest(folder: Path) -> dict:
    """The manifest of a corpus folder.

    Raises:
      MissingInput: no corpus there, or one that was not finished.
      DataError: the manifest is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial").is_dir()
        hint = (
            "its preparation was interrupted: give the same prepare command again"
            if partial
            else "no corpus there"
        )
        raise MissingInput(f"corpus {folder}: {path.name} is missing; {hint}")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format"]
        whole = version != FORMAT or manifest["checksum"] == checksum(manifest)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is damaged; copy or prepare the corpus again") from error
    if version != FORMAT:
        raise DataError(
            f"{path}: format {version!r}, this flaxlm reads {FORMAT}; delete the folder and "
            "prepare the corpus again"
        )
    if not whole:
        raise DataError(
            f"{path} is damaged or was edited: it is not as its own checksum says; copy or prepare "
            "the corpus again"
        )
    return manifest


def check_files(folder: Path, manifest: dict, *, hashes: bool) -> None:
    """Compare every file with the manifest: sizes always, contents if `hashes` (reads everything).

    Raises:
      DataError: naming the first file that is missing, of another size or changed.
    """
    for name, facts in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"corpus file {path} is missing; copy or prepare the corpus again"
            ) from error
        if size != facts["bytes"]:
            raise DataError(
                f"corpus file {path} has {size} bytes, the manifest says {facts['bytes']}: "
                "a broken copy? Copy or prepare the corpus again"
            )
    if hashes:
        paths = [folder / name for name in manifest["files"]]
        # Hashing holds no lock of the interpreter: as many files at once as there are cores.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = pool.map(_digest, paths)
            for path, sha256 in zip(paths, found, strict=True):
                if sha256 != (expected := manifest["files"][path.name]["sha256"]):
                    raise DataError(
                        f"corpus file {path} was changed: sha256 {sha256}, "
                        f"the manifest says {expected}; copy or prepare the corpus again"
                    )


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError as error:
        raise DataError(f"corpus file {path} cannot be read: {error.strerror}") from error


def check_once(folder: Path, cache: Path) -> None:
    """Compare every byte of a corpus with its manifest, unless that was done on this machine and no
    file has changed since, as far as sizes, times and inodes tell.

    Args:
      folder: of the corpus.
      cache: where it is remembered, a file of no bytes per state of the corpus.

    Raises:
      MissingInput, DataError: as `read_manifest` and `check_files`.
    """
    folder = Path(os.path.expanduser(folder)).absolute()
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=False)
    stats = [(folder / name).stat() for name in manifest["files"]]
    states = [[s.st_size, s.st_mtime_ns, s.st_ino] for s in stats]
    done = cache / "verified" / key([str(folder), manifest["checksum"], states])
    if done.exists():
        return
    with alone(cache / "verified" / f"{key(str(folder))}.lock"):
        if done.exists():
            return
        total = sum(s.st_size for s in stats)
        if total >= _TOLD:
            text = f"comparing {total / 2**30:.1f} GiB of {folder} with its manifest, this once"
            print(f"data: {text}", file=sys.stderr, flush=True)
        check_files(folder, manifest, hashes=True)
        write_whole(done, b"")
