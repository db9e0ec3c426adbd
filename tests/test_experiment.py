"""Experiments as files, overrides, the printed and the written form. All on a made-up model."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import pytest

from flaxlm.arguments import parse_argv
from flaxlm.data.spec import Data, Source
from flaxlm.errors import ConfigError
from flaxlm.experiment import Experiment, Run, folder, load, names
from flaxlm.objectives.base import Objective
from flaxlm.optim import AdamW, Cosine
from flaxlm.overrides import apply_overrides, check_same_run, describe, diff, resolve, to_json

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Size:
    depth: int = 4
    width: int = 64
    rate: float = 0.1
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    limit: int | None = None
    tied: bool = False
    kind: Literal["post", "pre"] = "pre"
    anything: Any = 3

    def __post_init__(self):
        if self.width % self.depth:
            raise ValueError("width must be a multiple of depth")


class Model(nn.Module):
    size: Size
    compute: str = "float32"

    @nn.compact
    def __call__(self, batch, *, train):
        return {}


@dataclass(frozen=True)
class Task(Objective):
    rate: float = 0.15
    inner: Objective | None = None
    window = prepare = terms = show = None  # never called here


BASE = Experiment(
    model=Model(Size()),
    objective=Task(inner=Task(rate=0.5)),
    data=Data(sources=(Source("a"), Source("b", weight=2.0)), batch=8, length=16),
    optimizer=AdamW(Cosine(1e-3)),
    run=Run(steps=100),
)


def change(*pairs: tuple[str, str]) -> Experiment:
    return apply_overrides(BASE, pairs)


# Overrides


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("run.steps", "10", 10),
        ("run.steps", "10_000", 10_000),
        ("mesh.data", "-1", -1),
        ("mesh.fsdp", "4", 4),
        ("mesh.rules.embed", "fsdp,tensor", ("fsdp", "tensor")),
        ("mesh.rules.heads", "", ()),
        ("model.size.depth", "2", 2),
        ("model.size.rate", "1e-3", 1e-3),
        ("model.size.rate", "1", 1.0),
        ("model.size.widths", "3,4,5", (3, 4, 5)),
        ("model.size.widths", "", ()),
        ("model.size.pair", "3, 4", (3, 4.0)),
        ("model.size.limit", "7", 7),
        ("model.size.limit", "none", None),
        ("model.size.tied", "true", True),
        ("model.size.kind", "post", "post"),
        ("model.size.anything", "9", 9),
        ("model.compute", "bfloat16", "bfloat16"),
        ("data.sources.0.uri", "text:a=b,*.txt", "text:a=b,*.txt"),
        ("data.sources.1.weight", "0.5", 0.5),
        ("optimizer.schedule.peak", "1e-2", 0.01),
        ("objective.inner.rate", "0.25", 0.25),
    ],
)
def test_override_replaces_exactly_one_leaf(path, text, value):
    new = change((path, text))
    found = new
    for name in path.split("."):
        found = (
            found[int(name)]
            if isinstance(found, tuple)
            else (found[name] if isinstance(found, dict) else getattr(found, name))
        )
    assert found == value and type(found) is type(value)
    assert type(new) is Experiment and isinstance(new.model, Model)
    assert {name for name, _, _ in diff(to_json(BASE), to_json(new))} <= {path}


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("run.stpes", "10", "run (Run) has no field 'stpes'; did you mean steps?"),
        ("runs.steps", "10", "the experiment has no field 'runs'; did you mean run?"),
        ("model.size.dept", "2", "model.size (Size) has no field 'dept'; did you mean depth?"),
        ("model.parent", "x", "model (Model) has no field 'parent'"),
        ("data.sources.2.uri", "x", "data.sources (tuple) has no field '2'; known: 0, 1"),
        ("optimizer.schedule.scale", "1", "(Cosine) has no field 'scale'"),
        ("mesh.rules.nothing", "data", "has no field 'nothing'"),
        ("run.steps", "1.5", "--run.steps=1.5: expected an integer, as in --run.steps=100"),
        ("run.steps", "", "expected an integer"),
        ("model.size.rate", "high", "--model.size.rate=high: expected a number"),
        ("model.size.rate", "nan", "expected a number"),
        ("model.size.tied", "yes", "expected true or false"),
        ("model.size.kind", "norm", "expected post or pre"),
        ("model.size.limit", "many", "expected none or an integer"),
        ("model.size.widths", "3,x", "expected values separated by commas, each an integer"),
        ("model.size.pair", "3", "expected 2 values separated by commas"),
        (
            "model.size",
            "big",
            "model.size is a group of values; override one of --model.size.depth",
        ),
        ("objective", "x", "objective is a group of values"),
        ("data.sources", "x", "data.sources is a group of values"),
        ("run.steps.more", "1", "run.steps is a single value (100), it has no fields"),
        ("model.size.width", "65", "--model.size.width=65: width must be a multiple of depth"),
        ("run.", "1", "has no field ''"),
        ("run.steps", "²", "expected an integer"),
        ("model.size.rate", "1e999", "expected a number"),
        ("data.course", "1", "course follows from other values of data (Data), override those: "),
        ("data.sources.00.uri", "x", "has no field '00'"),
        ("objective.inner.inner", "x", "expected"),
    ],
)
def test_override_refuses_in_one_line(path, text, message):
    with pytest.raises(ConfigError) as caught:
        change((path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_that_are_legal_only_together():
    size = change(("model.size.width", "66"), ("model.size.depth", "3")).model.size
    assert (size.width, size.depth) == (66, 3)


def test_same_override_twice_is_refused():
    with pytest.raises(ConfigError, match=r"--run.steps is given twice: '1' and '2'"):
        change(("run.steps", "1"), ("run.steps", "2"))


# The command line


def test_parse_argv():
    arguments = parse_argv(
        ["--experiment", "x", "--run.steps=10", "--mesh.data", "-1", "--dry-run", "--a.b=c=d"]
    )
    assert arguments.experiment == "x"
    assert arguments.overrides == (("run.steps", "10"), ("mesh.data", "-1"), ("a.b", "c=d"))
    assert arguments["--dry-run"] is True and arguments["--list"] is False
    assert parse_argv(["-h"])["--help"] is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dry-rum"], "unknown flag --dry-rum: did you mean --dry-run?"),
        (["--dry"], "unknown flag --dry"),
        (["--exp", "x"], "unknown flag --exp"),
        (["-x"], "unknown flag -x"),
        (["t5_span"], "unexpected argument 't5_span'"),
        (["run.steps=1"], "unexpected argument 'run.steps=1'"),
        (["--experiment"], "--experiment needs a value"),
        (["--run.steps", "--dry-run"], "--run.steps needs a value"),
        (["--run.steps=1", "--run.steps", "2"], "--run.steps is given twice"),
        (["--experiment=a", "--experiment=b"], "--experiment is given twice"),
        (["--dry-run=yes"], "--dry-run is a switch"),
        (["--run.directory=a\nb"], "argument '--run.directory=a\\nb': '\\n' is no printable text"),
        (["--run.directory=\udcff"], "'\\udcff' is no printable text in UTF-8"),
        (["--a.b=" + "x" * 999 + "\0"], "...': '\\x00' is no printable text"),
        (["--a.b=" + "x" * 2000], "...': 2006 letters, at most 1024 make sense"),
    ],
)
def test_parse_argv_refuses(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse_argv(argv)
    assert message in str(caught.value)


def test_a_typo_is_refused_before_jax_is_imported():
    code = """
    import sys
    from flaxlm.arguments import parse_argv
    from flaxlm.errors import command
    code = command(lambda argv: parse_argv(argv) and 0)(["--dry-rum"])
    heavy = {"jax", "flax", "numpy"} & set(sys.modules)
    print(code, sorted(heavy))
    """
    done = _python(code, cwd=ROOT)
    assert done.stdout.strip() == "78 []"
    assert done.stderr == "flaxlm: unknown flag --dry-rum: did you mean --dry-run?\n"


# Files

FILE = """
    '''{doc}

    More.'''
    from test_experiment_parts import BASE as experiment
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped experiments: `base`, and `derived` from it."""
    monkeypatch.setitem(sys.modules, "test_experiment_parts", sys.modules[__name__])
    monkeypatch.setattr("flaxlm.experiment.folder", lambda: tmp_path / "shipped")
    write(tmp_path / "shipped" / "base.py", FILE.format(doc="The base."))
    write(
        tmp_path / "shipped" / "derived.py",
        """
        "Derived."
        import dataclasses
        from experiments.base import experiment as base
        experiment = dataclasses.replace(base, run=dataclasses.replace(base.run, steps=7))
        """,
    )
    return tmp_path / "shipped"


def test_load_by_name_from_any_folder(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load("derived")
    assert found.experiment.run.steps == 7
    assert (found.name, found.doc, found.path) == ("derived", "Derived.", shipped / "derived.py")
    assert "from experiments.base" in found.source
    assert sys.path.count(str(shipped)) == 0


def test_load_by_path_prefers_the_files_beside_it(shipped, tmp_path, monkeypatch):
    own = tmp_path / "mine"
    mine = """
        from experiments.base import experiment
        from helper_of_mine import NUMBER
        """
    write(own / "mine.py", mine)
    write(own / "helper_of_mine.py", "NUMBER = 1")
    monkeypatch.chdir(tmp_path)
    assert load("mine/mine.py").experiment == BASE  # the shipped base
    write(own / "base.py", "from experiments.derived_here import experiment")
    write(own / "derived_here.py", (shipped / "derived.py").read_text().replace("base", "start"))
    write(own / "start.py", FILE.format(doc="Start."))
    assert load("mine/mine.py").experiment.run.steps == 7  # the base beside it
    assert load("base").experiment == BASE  # a name is always a shipped one


def test_load_by_module(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lab_package" / "__init__.py", "")
    write(tmp_path / "lab_package" / "trial.py", FILE.format(doc="Trial."))
    assert load("lab_package.trial").doc.startswith("Trial.")
    assert load("experiments.derived").experiment.run.steps == 7


def test_an_edited_file_is_read_again(shipped):
    assert load("derived").experiment.run.steps == 7
    text = (shipped / "derived.py").read_text()
    (shipped / "derived.py").write_text(text.replace("steps=7", "steps=70"))
    assert load("derived").experiment.run.steps == 70


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "which experiment? --experiment NAME"),
        ("derivd", "unknown experiment 'derivd': did you mean derived?"),
        ("here", "unknown experiment 'here': there is ./here.py: write it so"),
        ("missing.py", "there is no such .py file"),
        ("./shipped", "there is no such .py file"),
        ("no_such_package.trial", "--experiment no_such_package.trial: ModuleNotFoundError"),
        ("experiments.derivd", "did you mean derived?"),
        ("~nobody_of_that_name/x.py", "there is no such .py file"),
        ("a" * 300, "File name too long"),
        ("...", "ImportError: no package specified"),
        ("derived", "two experiments are called 'derived': write ./derived.py or "),
        ("json.nothing", "there is no such module"),
    ],
)
def test_unknown_experiments(shipped, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "here.py", "")
    write(tmp_path / "derived.py", "")
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\nx = = 2\n", 2, "SyntaxError: invalid syntax"),
        ("import json\n\n\njson.loads('{')\n", 4, "JSONDecodeError: Expecting property name"),
        (
            "def f():\n    return 1 / 0\nexperiment = f()\n",
            2,
            "ZeroDivisionError: division by zero",
        ),
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("from experiments.bse import experiment\n", 1, "No module named 'experiments.bse'"),
        ("from flaxlm.experiment import Run\nRun(stpes=1)\n", 2, "unexpected keyword argument"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("raise ValueError('one\\ntwo')\n", 1, "ValueError: one two"),
        ("raise type('Own', (BaseException,), {})('no')\n", 1, "Own: no"),
        (
            "class E(Exception):\n    def __str__(self):\n        raise self\nraise E\n",
            4,
            "E: (no message)",
        ),
        ("def f():\n    return f()\nf()\n", 2, "RecursionError: maximum recursion depth"),
        ("x = 1\n", None, "`experiment` is missing; set experiment = Experiment(...)"),
        ("experiment = 3\n", None, "`experiment` is a int"),
    ],
)
def test_malformed_file_names_the_users_line(shipped, tmp_path, text, line, message):
    path = write(tmp_path / "broken.py", text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    found = str(caught.value)
    assert found.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert message in found and "\n" not in found


def test_bytes_that_are_no_text(shipped, tmp_path):
    (tmp_path / "bytes.py").write_bytes(b"x = 1\ny = '\xff'\n")
    with pytest.raises(ConfigError, match=r"bytes.py:\d+: SyntaxError"):
        load(str(tmp_path / "bytes.py"))


def test_an_error_in_a_sibling_names_the_siblings_line(shipped, tmp_path):
    write(tmp_path / "sibling.py", "x = 1\nx.nothing\n")
    path = write(tmp_path / "uses.py", "from experiments.sibling import x\n")
    with pytest.raises(ConfigError, match=r"sibling.py:2: AttributeError"):
        load(str(path))


def test_parts_and_leaves_of_a_wrong_type(shipped, tmp_path):
    start = FILE.format(doc="Wrong.") + "    import dataclasses\n"
    start += "    from test_experiment_parts import Model, Size\n"
    end = "experiment = dataclasses.replace(experiment, "
    for change_, message in [
        ("run=3)", "experiment.run: got int, expected a Run"),
        ("model=type(experiment.model))", "experiment.model: got class Model, expected a Module"),
        (
            "run=dataclasses.replace(experiment.run, steps='10'))",
            "run.steps is '10' (str), expected int",
        ),
        (
            "run=dataclasses.replace(experiment.run, steps=True))",
            "run.steps is True (bool), expected int",
        ),
        (
            "data=dataclasses.replace(experiment.data, sources=[1]))",
            "data.sources is [1] (list), expected tuple[Source, ...]",
        ),
        (
            "data=dataclasses.replace(experiment.data, sources=(1,)))",
            "data.sources is (1,) (tuple), expected tuple[Source, ...]",
        ),
        (
            "model=Model(Size(kind='norm')))",
            "model.size.kind is 'norm' (str), expected Literal['post', 'pre']",
        ),
        ("model=Model(Size(rate=float('nan'))))", "model.size.rate is nan (float), expected float"),
        ("model=Model(Size(pair=(1,))))", "model.size.pair is (1,) (tuple), expected"),
        ("model=Model(Size(rate=10**400)))", "model.size.rate is 1000"),
        ("model=Model(Size(limit=10**5000)))", "model.size.limit is (cannot be printed) (int)"),
        ("model=Model(Size(limit='a\\nb' * 99)))", "model.size.limit is 'a"),
    ]:
        path = write(tmp_path / "wrong.py", start + f"    {end}{change_}\n")
        with pytest.raises(ConfigError) as caught:
            resolve(parse_argv(["--experiment", str(path)]))
        assert message in str(caught.value)


def test_names_does_not_execute(shipped):
    write(shipped / "loud.py", "'Loud.'\nraise SystemExit\n")
    write(shipped / "broken.py", "'Broken.'\n= 1\n")
    write(shipped / "silent.py", "x = 1\n")
    write(shipped / "_private.py", "")
    found = names()
    assert list(found) == ["base", "broken", "derived", "loud", "silent"]
    assert (found["base"], found["loud"], found["silent"]) == ("The base.", "Loud.", "")
    assert "does not parse" in found["broken"]


def test_loading_and_overriding_touch_no_device(tmp_path):
    """In a fresh process: the whole way to a resolved experiment initialises no backend."""
    path = write(
        tmp_path / "probe.py",
        """
        import flax.linen as nn
        from dataclasses import dataclass
        from flaxlm.data.spec import Data, Source
        from flaxlm.experiment import Experiment, Run
        from flaxlm.objectives.base import Objective
        from flaxlm.optim import AdamW, Constant
        class Model(nn.Module):
            width: int = 1
        @dataclass(frozen=True)
        class Task(Objective):
            rate: float = 0.1
            window = prepare = terms = show = None
        experiment = Experiment(
            Model(), Task(), Data((Source("a"),), 8, 16), AdamW(Constant(1e-3)), Run(1)
        )
        """,
    )
    code = f"""
    from flaxlm.arguments import parse_argv
    from flaxlm.overrides import describe, resolve, to_json
    loaded = resolve(parse_argv(["--experiment", {str(path)!r}, "--model.width=3"]))
    describe(loaded.experiment), to_json(loaded.experiment)
    from jax._src import xla_bridge
    print(loaded.experiment.model.width, xla_bridge._backends)
    """
    assert _python(code, cwd=tmp_path).stdout.strip() == "3 {}"


def _python(code: str, *, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )


# Printed, written, compared


def test_describe_shows_every_leaf_with_its_origin():
    pairs = (("run.steps", "10"), ("model.size.depth", "2"))
    lines = {line.split()[0]: line.split() for line in describe(change(*pairs), pairs).splitlines()}
    assert lines["run.steps"] == ["run.steps", "10", "command", "line"]
    assert lines["model.size.depth"] == ["model.size.depth", "2", "command", "line"]
    assert lines["run.seed"] == ["run.seed", "0", "experiment"]
    assert lines["optimizer.schedule.peak"] == ["optimizer.schedule.peak", "0.001", "experiment"]
    assert lines["optimizer.schedule"] == ["optimizer.schedule", "[flaxlm.schedules.Cosine]"]
    assert lines["data.held_out"] == ["data.held_out", "()", "experiment"]
    assert lines["model.size.limit"][1] == "none"
    leaves = {path for path, _, _ in diff({"run": 0}, to_json(BASE))} - {"run"}
    assert {path for path in leaves if path.rpartition(".")[2] != "class"} <= set(lines)


def test_a_value_as_printed_is_a_legal_override():
    for line in describe(BASE).splitlines()[1:]:
        name, value, *origin = line.split()
        if origin and value not in ("''", "()"):
            assert change((name, value)) == BASE, line


def test_json_is_complete_and_plain():
    written = to_json(BASE)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["class"] == "flaxlm.experiment.Experiment"
    assert written["model"]["size"]["widths"] == [1, 2]
    assert written["optimizer"]["schedule"]["class"] == "flaxlm.schedules.Cosine"
    assert [source["uri"] for source in written["data"]["sources"]] == ["a", "b"]
    assert written["mesh"]["rules"]["mlp"] == ["tensor"]
    infinite = dataclasses.replace(BASE, objective=Task(rate=float("inf")))
    assert to_json(infinite)["objective"]["rate"] == "inf"


def test_json_refuses_what_has_no_written_form():
    with pytest.raises(ConfigError, match=r"experiment\.model\.size\.anything is a set"):
        to_json(dataclasses.replace(BASE, model=Model(Size(anything={1}))))


def test_diff():
    new = change(("run.steps", "7"), ("data.sources.1.uri", "c"))
    assert diff(to_json(BASE), to_json(new)) == [
        ("data.sources.1.uri", "b", "c"),
        ("run.steps", 100, 7),
    ]
    constant = dataclasses.replace(BASE, objective=Task(inner=None))
    found = {path: (old, now) for path, old, now in diff(to_json(BASE), to_json(constant))}
    assert found["objective.inner"] == ("(absent)", None)
    assert found["objective.inner.rate"] == (0.5, "(absent)")
    assert diff({"a": 1}, {"a": 1.0}) == [] and diff({"a": 1}, {"a": True}) != []


def test_a_run_directory_of_another_experiment_is_refused():
    old = to_json(BASE)
    free = change(
        ("run.steps", "7"), ("run.eval_every", "3"), ("mesh.fsdp", "2"), ("mesh.rules.embed", "")
    )
    assert len(check_same_run(old, to_json(free), directory="runs/x")) == 4
    other = change(("run.seed", "1"), ("model.size.rate", "0.3"), ("run.steps", "7"))
    with pytest.raises(ConfigError) as caught:
        check_same_run(old, to_json(other), directory="runs/x")
    first, *table = str(caught.value).splitlines()
    assert first.startswith("runs/x holds another experiment (2 fields differ); give the old")
    assert table == ["  model.size.rate  saved 0.1, now 0.3", "  run.seed         saved 0, now 1"]
    assert "run.steps" not in str(caught.value)


# What ships


def test_every_shipped_experiment_has_a_line_and_loads():
    assert names(), f"no experiments in {folder()}"
    for name, line in names().items():
        assert line, f"experiments/{name}.py has no docstring"
        loaded = resolve(parse_argv(["--experiment", name, "--run.steps=3"]))
        assert loaded.experiment.run.steps == 3
        assert json.dumps(to_json(loaded.experiment), allow_nan=False)
