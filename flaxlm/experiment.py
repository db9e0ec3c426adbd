"""`Experiment`: everything about a run as one frozen value; and how the file with one is found."""

import ast
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import tokenize
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import flax.linen as nn

from flaxlm.data.spec import Data
from flaxlm.errors import ConfigError, nearest
from flaxlm.guard import Divergence
from flaxlm.lora import LoRA
from flaxlm.objectives.base import Objective
from flaxlm.optim import Optimizer
from flaxlm.sharding import Mesh


@dataclass(frozen=True)
class Run:
    """How long, how often, where.

    Attributes:
      steps: optimizer steps of the run.
      accumulate: micro-batches per step; the batch is unchanged, memory falls.
      log_every: steps between metric lines.
      eval_every: steps between evaluations on held-out rows (0: only at the end).
      eval_batches: batches of one evaluation (0: all that is held out, as a task's metrics need).
      save_every: steps between checkpoints (the last step is always saved; 0: only the last).
      keep: newest checkpoints kept.
      keep_hours: the first checkpoint of every so many hours is kept too (0: none is for that).
      keep_best: and the one whose evaluation was the best, "min loss" or "max gain" ("": none is);
        only a step that is evaluated and saved counts.
      patience: seconds without a step after which the process ends with 71 and the stacks of its
        threads, so that a launcher starts the run again; longer where steps or what stands between
        them take longer (`flaxlm.watchdog`). 0 waits for ever.
      seed: of parameters, data order, corruption and dropout.
      directory: run directory; "" is runs/<experiment>.
      divergence: what is done about steps whose loss or gradients are not finite, or stand out.
    """

    steps: int
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 8
    save_every: int = 1000
    keep: int = 3
    keep_hours: float = 0.0
    keep_best: str = ""
    patience: float = 120.0
    seed: int = 0
    directory: str = ""
    divergence: Divergence = field(default_factory=Divergence)


@dataclass(frozen=True)
class Restore:
    """A warm start: parameters read from another run, or from a Hugging Face folder.

    Attributes:
      path: run directory, or folder with config.json and safetensors.
      take: path of a subtree of theirs, "a/b"; "" is the whole tree.
      into: path of ours that it becomes.
      layers: which of their stacked layers, in this order; () is all.
      without: parts of theirs, by their paths, that are left out where they are there: the heads of
        a pretraining that a task has no use for.
      grow: whether our vocabulary goes on where theirs ends: the rows of ids that they lack stay as
        they were initialised.
    """

    path: str
    take: str = ""
    into: str = ""
    layers: tuple[int, ...] = ()
    without: tuple[str, ...] = ()
    grow: bool = False


@dataclass(frozen=True)
class Frozen:
    """A model that the objective reads and nobody trains, such as a teacher.

    Attributes:
      name: what the objective calls it.
      model: its module.
      start: where its parameters come from.
    """

    name: str
    model: nn.Module
    start: Restore


@dataclass(frozen=True)
class Experiment:
    """Model family, pretraining objective, data, optimizer, mesh and run: the whole declaration.

    Attributes:
      start: parameters that the run begins with, in this order; what none of them names is
        initialised as usual.
      frozen: models that are never trained.
      lora: low-rank changes that learn in place of the model's own parameters; None: these learn.
    """

    model: nn.Module
    objective: Objective
    data: Data
    optimizer: Optimizer
    run: Run
    mesh: Mesh = field(default_factory=Mesh)
    start: tuple[Restore, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    lora: LoRA | None = None


@dataclass(frozen=True)
class Loaded:
    """An experiment and the file that declares it.

    Attributes:
      name: stem of the file.
      doc: the file's docstring, "" if there is none.
      source: the file's text.
    """

    experiment: Experiment
    name: str
    path: Path
    doc: str
    source: str


def folder() -> Path:
    """Where the shipped experiments lie: inside an installed wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_experiments"
    return shipped if shipped.is_dir() else package.parent / "experiments"


def names() -> dict[str, str]:
    """{name: first line of its docstring} of the shipped experiments, without executing them."""
    found = {}
    for path in sorted(folder().glob("*.py")):
        if path.stem.startswith("_"):
            continue
        try:
            doc = ast.get_docstring(ast.parse(path.read_bytes()))
            found[path.stem] = doc.partition("\n")[0] if doc else ""
        except (SyntaxError, ValueError) as error:  # --list must still show the others
            found[path.stem] = f"(does not parse: {_text_of(error)})"
    return found


def load(name: str) -> Loaded:
    """Execute one experiment file and take its module-level `experiment`.

    Args:
      name: one of `names()`, a path (it has a slash or ends in .py), or "package.module".

    Raises:
      ConfigError: there is no such experiment (naming the nearest), there are two of that name, or
        the file does not declare one (naming its line).
    """
    if not name:
        raise ConfigError("which experiment? --experiment NAME; --list shows all names")
    try:
        module, path = _find(name)
    except (OSError, ValueError) as error:  # a name that is too long, a folder one may not read
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--experiment {name[:80]}: {_text_of(error)}") from error
    return _execute(module, path, beside=path.parent)


def _find(name: str) -> tuple[str, Path]:
    """(name of the module to make, file) of an experiment."""
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(os.path.expanduser(name)).absolute()
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"--experiment {name}: there is no such .py file ({path})")
        return f"experiments.{path.stem}", path
    if "." in name:
        return name, _locate(name)
    shipped, own = folder() / f"{name}.py", Path(f"{name}.py")
    if not shipped.is_file():
        here = f"there is ./{own}: write it so" if own.is_file() else ""
        raise ConfigError(f"unknown experiment {name!r}: {here or nearest(name, names())}")
    if own.is_file() and not own.samefile(shipped):
        raise ConfigError(f"two experiments are called {name!r}: write ./{own} or {shipped}")
    return f"experiments.{name}", shipped


def _execute(module_name: str, path: Path, *, beside: Path) -> Loaded:
    with _experiments_package(beside):
        try:
            module = _run_file(module_name, path)
            with tokenize.open(path) as file:
                source = file.read()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too, and whatever else the file defines
            raise ConfigError(f"{_line_of(error, path, beside)}: {_text_of(error)}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        kind = "missing" if experiment is None else f"a {type(experiment).__name__}"
        raise ConfigError(f"{path}: `experiment` is {kind}; set experiment = Experiment(...)")
    _check_parts(experiment, path)
    return Loaded(experiment, path.stem, path, module.__doc__ or "", source)


def _run_file(module_name: str, path: Path) -> types.ModuleType:
    if not module_name.startswith("experiments."):  # of an installed package: imported as itself
        return importlib.import_module(module_name)
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _experiments_package(beside: Path) -> Iterator[None]:
    """Make `from experiments.NAME import experiment` work from any folder.

    NAME is looked up in the folder `beside` the loading file, then among the shipped experiments.
    The package is made afresh for every load, so a file that was edited is read again.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]
    package = types.ModuleType("experiments")
    package.__path__ = list(dict.fromkeys([str(beside), str(folder())]))
    package.__spec__ = importlib.machinery.ModuleSpec("experiments", None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules["experiments"] = package
    importlib.invalidate_caches()
    before = list(sys.path)
    sys.path += [str(beside), str(Path.cwd())]  # last: no file there can shadow what is installed
    try:
        yield
    finally:
        sys.path[:] = before


def _locate(name: str) -> Path:
    """The file of "package.module", from the current folder or what is installed."""
    first, _, rest = name.partition(".")
    if first == "experiments":
        paths = [place / f"{rest}.py" for place in (Path.cwd() / "experiments", folder())]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ConfigError(f"unknown experiment {name!r}: {nearest(rest, names())}")
        return path
    with _experiments_package(Path.cwd()):
        try:
            spec = importlib.util.find_spec(name)
        except (Exception, SystemExit) as error:  # finding a module executes its package
            raise ConfigError(f"--experiment {name}: {_text_of(error)}") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"--experiment {name}: there is no such module, here or installed")
    return Path(spec.origin)


def _line_of(error: BaseException, path: Path, beside: Path) -> str:
    """file:line of the user's code that failed: the innermost frame in the experiment's folder."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent in (beside, folder())]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)


def _text_of(error: BaseException) -> str:
    try:
        text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    except Exception:  # of an exception that the file defines
        text = "(no message)"
    kind = "" if isinstance(error, ConfigError) else type(error).__name__
    return ": ".join(part for part in (kind, text) if part)


def _check_parts(experiment: Experiment, path: Path) -> None:
    expected = {
        "model": nn.Module,
        "objective": Objective,
        "data": Data,
        "optimizer": Optimizer,
        "run": Run,
        "mesh": Mesh,
        "start": tuple,
        "frozen": tuple,
        **({"lora": LoRA} if experiment.lora is not None else {}),
    }
    for name, kind in expected.items():
        value = getattr(experiment, name)
        if not isinstance(value, kind):
            got = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise ConfigError(f"{path}: experiment.{name}: got {got}, expected a {kind.__name__}")
