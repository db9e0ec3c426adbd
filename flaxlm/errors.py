"""What can go wrong by a user's doing, each with one clear line and its own exit code.

A launcher decides from the code what to do: 71 and 75 mean "start me again", 65/66/77/78 mean "do
not retry, a person must look". `UserError`s are printed as one line without a traceback; every
other exception is ours and keeps its traceback.
"""

import functools
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Base of all errors a user can cause. `str(error)` says what is wrong, where, and what
    would work.
    """

    code = 1


class ConfigError(UserError):
    """The experiment, an override or the mesh is not legal (EX_CONFIG)."""

    code = 78


class DataError(UserError):
    """The data was found but is not usable: bad bytes, empty, id out of range (EX_DATAERR)."""

    code = 65


class MissingInput(UserError):
    """A corpus, a vocabulary or another input is missing or is not the one the run was made with
    (EX_NOINPUT).
    """

    code = 66


class NonFinite(UserError):
    """The loss or a gradient became NaN or infinite (EX_SOFTWARE)."""

    code = 70


class PeerLost(UserError):
    """Another process of the run never came, died, or hangs (EX_OSERR): start all of them again."""

    code = 71


class RunDirError(UserError):
    """The run directory cannot be made, written or belongs to another run (EX_CANTCREAT)."""

    code = 73


class StorageError(UserError):
    """Reading or writing failed: disk full, checkpoint damaged beyond fallback (EX_IOERR)."""

    code = 74


class Refused(UserError):
    """Refused for safety or for lack of permission (EX_NOPERM)."""

    code = 77


PREEMPTED = 75  # EX_TEMPFAIL: state saved, start me again


def command(function: Callable[[list[str]], int | None]) -> Callable[[list[str] | None], int]:
    """Turn `function(argv) -> exit code` into a command: `UserError` becomes one line on stderr and
    its code.

    The returned function takes `argv` (default: the process's own) and returns the exit code; a
    module ends in `sys.exit(main())`. It never exits by itself, so it can be called from a notebook
    or another launcher.
    """

    @functools.wraps(function)
    def main(argv: list[str] | None = None) -> int:
        try:
            return function(sys.argv[1:] if argv is None else list(argv)) or 0
        except UserError as error:
            print(f"flaxlm: {error}", file=sys.stderr, flush=True)
            return error.code
        except BrokenPipeError:  # `flaxlm ... | head`: the reader left, which is not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return main


def nearest(name: str, known) -> str:
    """`did you mean a, b?` for a misspelt `name`, or the sorted list of what exists if nothing
    is near.
    """
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
