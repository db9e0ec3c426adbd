"""Versions of Python and of the packages, and files that hide them."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flaxlm.errors import ConfigError
from flaxlm.health.finding import Finding

PACKAGE = Path(__file__).resolve().parent.parent

# The oldest and the newest version that all tests have passed with; what may be installed is wider
# and stands in pyproject.toml.
TESTED = {
    "python": ("3.11", "3.12"),
    "jax": ("0.10.2", "0.12.0.1"),
    "flax": ("0.12.8", "0.12.12"),
    "optax": ("0.2.8", "0.2.8"),
    "orbax-checkpoint": ("0.12.8", "0.12.8"),
    "tensorflow-datasets": ("4.9.10", "4.9.10"),
    "array_record": ("0.8.6", "0.8.6"),
    "grain": ("0.2.18", "0.2.18"),
    "sentencepiece": ("0.2.3", "0.2.3"),
    "tokenizers": ("0.23.3", "0.23.3"),
    "numpy": ("2.4.6", "2.5.5"),
    "pyarrow": ("26.0.1", "26.0.1"),
}

# Distributions whose module has another name.
_MODULES = {
    "orbax-checkpoint": "orbax.checkpoint",
    "tensorflow-datasets": "tensorflow_datasets",
    "protobuf": "google.protobuf",
}
_EXTRAS = ("tpu", "cuda12", "cuda13")  # of jax


def module_of(distribution: str) -> str:
    """The module that a distribution is imported as."""
    return _MODULES[distribution] if distribution in _MODULES else distribution


def declared() -> tuple[str, list[str]]:
    """(versions of Python, requirements) of flaxlm: of the checkout that runs, else as installed.

    Raises:
      ConfigError: it is neither.
    """
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        import tomllib

        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return table["requires-python"], table["dependencies"]
    try:
        found = importlib.metadata.metadata("flaxlm")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"flaxlm runs from {PACKAGE}, which is neither installed nor a checkout"
        ) from None
    everything = found.get_all("Requires-Dist") or []
    return found["Requires-Python"], [text for text in everything if "extra ==" not in text]


def installed(distribution: str) -> str | None:
    """The version of a distribution, None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def python(required: str, version: str = platform.python_version()) -> Finding:
    """Whether this is a Python that flaxlm supports."""
    from packaging.specifiers import SpecifierSet

    where = f"{version} ({sys.executable})"
    if not SpecifierSet(required).contains(version, prereleases=True):
        return Finding(
            "python",
            f"{where}; needs {required}",
            f"start it with Python {TESTED['python'][1]}",
            78,
        )
    if remark := _untested("python", ".".join(version.split(".")[:2])):
        return Finding("python", f"{where}; {remark}", f"Python {TESTED['python'][1]} is safe")
    return Finding("python", where)


def packages(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """One finding for each package that is missing or of another version than it should be, and one
    for all others.

    Args:
      requirements: as in pyproject.toml, "jax>=0.10.2,<0.13".
      version_of: `installed`, or what stands for it.
    """
    from packaging.requirements import Requirement

    fine, findings = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, version = requirement.name, version_of(requirement.name)
        needed = f"pip install '{name}{requirement.specifier}'"
        if version is None:
            findings.append(Finding(name, "not installed", needed, 78))
        elif not requirement.specifier.contains(version, prereleases=True):
            outside = f"{version} is not {requirement.specifier}"
            findings.append(Finding(name, outside, needed, 78))
        elif remark := _untested(name, version):
            newest = TESTED[name][1]
            findings.append(
                Finding(name, f"{version} {remark}", f"'{name}=={newest}' if anything is odd")
            )
        else:
            fine.append(f"{name} {version}")
    text = f"{len(fine)} as needed: {', '.join(fine[:5])}" + ", ..." * (len(fine) > 5)
    return [Finding("packages", text), *findings]


def plugins(requirements: Sequence[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """Whether jaxlib and the plugins for accelerators, where installed, belong to this jax.

    Args:
      requirements: of the installed jax, `importlib.metadata.requires("jax")`.
    """
    from packaging.requirements import Requirement

    findings, seen = [], []
    for extra in ("", *_EXTRAS):
        for requirement in map(Requirement, requirements):
            name = requirement.name
            at_all = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if not at_all or name in seen or not name.startswith(("jaxlib", "jax-", "libtpu")):
                continue
            seen.append(name)
            version = version_of(name)
            if version is None and extra:
                continue  # a plugin is needed where its accelerator is
            bracket = f"[{extra}]" if extra else ""
            advice = f"pip install --upgrade 'jax{bracket}=={version_of('jax')}'"
            if version is None:
                findings.append(Finding(name, "not installed", advice, 78))
            elif not requirement.specifier.contains(version, prereleases=True):
                text = f"{version}, but this jax goes with {name}{requirement.specifier}"
                findings.append(Finding(name, text, advice, 78))
            else:
                findings.append(Finding(name, version))
    return findings


def shadows(
    folders: Iterable[Path],
    modules: Mapping[str, Path],
    *,
    standard: Iterable[str] = sys.stdlib_module_names,
) -> Iterator[Finding]:
    """Files and folders that Python would import in place of what is needed.

    Args:
      folders: what stands before the installed packages on the path: the working directory,
        PYTHONPATH.
      modules: {module: the folder that it should come from}.
      standard: modules of Python itself.
    """
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.suffix != ".py" and not (entry / "__init__.py").is_file():
                continue
            name = entry.stem
            if name in modules:
                hidden = folder != modules[name].resolve()
            else:
                hidden = name in set(standard) and Path(os.__file__).resolve().parent != folder
            if hidden:
                yield Finding(
                    "python path",
                    f"{entry} is imported in place of the real {name}",
                    "rename it, or take its folder out of PYTHONPATH, or start elsewhere",
                )


def places(distributions: Iterable[str]) -> dict[str, Path]:
    """{module: the folder it should come from} of distributions that are installed, and of
    flaxlm.
    """
    found = {"flaxlm": PACKAGE.parent}
    for name in distributions:
        if installed(name) is not None:
            root = importlib.metadata.distribution(name).locate_file("")
            found[module_of(name).partition(".")[0]] = Path(str(root))
    return found


def _untested(name: str, version: str) -> str:
    """What is to be said of a version that may be installed and was not tried, else ""."""
    from packaging.version import Version

    if name not in TESTED:
        return ""
    oldest, newest = TESTED[name]
    if Version(version) < Version(oldest):
        return f"is older than any it was tested with ({oldest} to {newest})"
    if Version(version) > Version(newest):
        return f"is newer than any it was tested with ({oldest} to {newest})"
    return ""
