"""`python -m flaxlm.doctor`: can this machine train, and if not, what to do.

Looks at versions, settings, memory, disks and accelerators, then trains a tiny model for a few
steps. Every finding is one line, with one line of advice where something is to be done. It never
touches a run; what it tries in the run directory it removes again.
"""

import importlib.metadata
import io
import locale
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import flaxlm
from flaxlm.arguments import HELP, Flag, help_page, parse_argv
from flaxlm.errors import RunDirError, StorageError, command
from flaxlm.health.finding import Finding, one_line

FLAGS = {
    "--run.directory": Flag("where runs are to be written; runs if not given", "PATH"),
    "--help": HELP,
}


@command
def main(argv: list[str]) -> int:
    """The command line. Returns 0 if nothing stands in the way, else the code of the first thing
    that does.
    """
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        print(help_page("flaxlm.doctor", "Can this machine train?", FLAGS, words="[flags]"))
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot write
        sys.stdout.reconfigure(errors="backslashreplace")
    print(f"flaxlm {flaxlm.__version__} on {platform.platform()} {platform.machine()}", flush=True)
    findings = []
    try:
        for name, check in checks(arguments["--run.directory"]):
            for finding in look(name, check):
                print(finding, flush=True)
                findings.append(finding)
    except KeyboardInterrupt:
        print("stopped before the end", flush=True)
        return 128 + signal.SIGINT
    print(verdict(findings))
    return next((finding.code for finding in findings if finding.code), 0)


def checks(given: str) -> list[tuple[str, Callable[[], Iterable[Finding]]]]:
    """(name, check), in the order in which they are made: what is quick, then what may hang.

    Args:
      given: the run directory, "" if there is none to be used.
    """
    directory = given or "runs"
    return [
        ("packages", packages),
        ("environment", environment),
        ("machine", machine),
        ("run directory", lambda: run_directory(directory)),
        ("cache", cache),
        ("accelerators", accelerators),
        ("self test", lambda: selftest(given)),
    ]


def look(name: str, check: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    """The findings of a check; where it fails itself, that is one."""
    try:
        yield from check()
    except Exception as error:
        text = one_line(f"could not be looked at: {type(error).__name__}: {error}")
        yield Finding(name, text, "go on without, if all else is well")


def verdict(findings: Iterable[Finding]) -> str:
    """The last line."""
    findings = list(findings)
    stops = [finding for finding in findings if finding.code]
    notes = sum(bool(finding.advice) for finding in findings) - len(stops)
    also = f"; {notes} note(s)" if notes else ""
    if not stops:
        return f"nothing stands in the way of a run{also}"
    return f"{len(stops)} thing(s) in the way, first of all: {stops[0].check}{also}"


# Each check imports what it needs when it is made: what is broken must not hide the others.


def packages() -> Iterable[Finding]:
    from flaxlm.health import software

    if sys.version_info < (3, 11):  # noqa: UP036 - it cannot even read what is declared
        yield Finding("python", platform.python_version(), "start it with Python 3.11 or newer", 78)
        return
    python, requirements = software.declared()
    yield software.python(python)
    yield from software.packages(requirements, software.installed)
    if software.installed("jax") is not None:
        yield from software.plugins(importlib.metadata.requires("jax") or [], software.installed)


def environment() -> Iterable[Finding]:
    from flaxlm.health import settings, software

    yield from settings.environment(os.environ)
    yield settings.encoding(
        filesystem=sys.getfilesystemencoding(),
        preferred=locale.getpreferredencoding(False),
        output=sys.stdout.encoding,
    )
    folders = [Path.cwd()]
    if os.environ.get("PYTHONPATH"):
        folders += map(Path, filter(None, os.environ["PYTHONPATH"].split(os.pathsep)))
    from packaging.requirements import Requirement

    names = [Requirement(text).name for text in software.declared()[1]]
    yield from software.shadows(folders, software.places(names))


def machine() -> Iterable[Finding]:
    from flaxlm.health import machine

    yield machine.processors()
    yield machine.clock()
    yield from machine.limits()
    yield machine.memory()


def run_directory(directory: str) -> Iterable[Finding]:
    from flaxlm.health import storage

    yield from storage.writable("run directory", directory, code=RunDirError.code)
    yield from storage.holder(directory)


def cache() -> Iterable[Finding]:
    from flaxlm.data.files import cache_folder
    from flaxlm.health import storage

    yield from storage.writable("cache", cache_folder(), code=StorageError.code)
    yield storage.programs(os.environ)
    yield from storage.writable("temporary", tempfile.gettempdir(), code=StorageError.code)


def accelerators() -> Iterable[Finding]:
    from flaxlm.health import accelerators

    yield from accelerators.machine(accelerators.hardware())
    yield from accelerators.holders()


def selftest(directory: str) -> Iterable[Finding]:
    from flaxlm.health import storage
    from flaxlm.health.selftest import selftest

    return selftest(str(storage.existing(directory)) if directory else "", os.environ)


if __name__ == "__main__":
    sys.exit(main())
