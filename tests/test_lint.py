"""Nothing in the source can run what a file says, or takes an archive apart: read with ast.

docs/security.md is the page to it.
"""

import ast
import builtins
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flaxlm", "experiments", "benchmarks", "tpu")

# Formats that hold code, and archives, which nothing here takes apart.
MODULES = (
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "jsonpickle", "marshal",
    "shelve", "runpy", "code", "tarfile", "zipfile", "zipimport",
)  # fmt: skip
NAMES = (
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "os.system",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load",
    "torch.hub", "shutil.unpack_archive", "numpy.fromregex", "pty.spawn",
)  # fmt: skip
# What holds code in some of its uses: {name: (the one file that may name it, what of it)}.
PARTLY = {
    "yaml": ("flaxlm/prompts/promptsource.py", ("yaml.SafeLoader", "yaml.YAMLError")),
    "jinja2": (
        "flaxlm/prompts/sandbox.py",
        (
            "jinja2.nodes", "jinja2.runtime.LoopContext", "jinja2.pass_context",
            "jinja2.sandbox.ImmutableSandboxedEnvironment", "jinja2.StrictUndefined",
            "jinja2.TemplateError", "jinja2.Template.from_code",
        ),
    ),
}  # fmt: skip
# {keyword: the values it may have}
KEYWORDS = {"allow_pickle": (False,), "shell": (False,), "trust_remote_code": (False,)}
# Modules found by a name: the one that an experiment file is, and three that look into packages of
# flaxlm's own, or of the list of what it needs.
BY_NAME = {
    "flaxlm/experiment.py": "the file that --experiment names",
    "flaxlm/rebuild.py": "flaxlm.models and flaxlm.nn alone",
    "flaxlm/convert/families.py": "flaxlm.convert alone",
    "flaxlm/tasks/base.py": "flaxlm.tasks alone",
    "flaxlm/health/trial.py": "the packages that flaxlm needs",
}


def findings(source: str, path: str) -> list[str]:
    """What of a file is not allowed, as "line: what"."""
    tree = ast.parse(source)
    alias = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.partition(".")[0]
                alias |= {name.asname: name.name} if name.asname else {first: first}
        elif isinstance(node, ast.ImportFrom):
            alias |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}

    def dotted(node) -> str:
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        if not isinstance(node, ast.Name):
            return ""
        if node.id in alias:
            return alias[node.id]
        return f"builtins.{node.id}" if hasattr(builtins, node.id) else node.id

    def under(name: str, known: tuple[str, ...]) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in known)

    def partly(name: str) -> bool:
        """Whether a name is none of `PARTLY`, or on the way to what may be named, or part of it."""
        file, known = PARTLY.get(name.partition(".")[0], (path, ()))
        ways = any(f"{one}.".startswith(f"{name}.") for one in known)
        return path == file and (not known or ways or under(name, known))

    found = []
    for node in ast.walk(tree):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported(node)
            found += [f"{at}: imports {name}" for name in names if under(name, MODULES + NAMES)]
            found += [f"{at}: imports {name}" for name in names if not partly(name)]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node)
            if not partly(name):
                found.append(f"{at}: {name}")
            if under(name, NAMES):
                found.append(f"{at}: {name}")
            tail = name.rpartition(".")[2]
            if tail in ("extractall", "unpack_archive"):
                found.append(f"{at}: {tail}")
            loads = name in ("importlib.import_module", "importlib.reload") or tail == "exec_module"
            if loads and path not in BY_NAME:
                found.append(f"{at}: {name} loads a module by its name")
        elif isinstance(node, ast.Call):
            for given in node.keywords:
                if given.arg in KEYWORDS:
                    constant = isinstance(given.value, ast.Constant)
                    if not constant or given.value.value not in KEYWORDS[given.arg]:
                        found.append(f"{at}: {given.arg}={ast.unparse(given.value)}")
    return found


def imported(node) -> list[str]:
    """The full names that an import names; a relative one begins with a dot."""
    start = f"{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
    return [start + name.name for name in node.names]


def test_nothing_can_run_what_a_file_says():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 150
    found = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        found += findings(path.read_text(encoding="utf-8"), name)
    assert not found, "\n".join(found)
    assert all((ROOT / name).is_file() for name in BY_NAME)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import pickle as harmless",
        "def f():\n    import marshal",
        "import shelve, os",
        "import yaml",
        "from yaml import safe_load",
        "import jinja2",
        "from jinja2.sandbox import SandboxedEnvironment",
        "import tarfile",
        "from zipfile import ZipFile",
        "import dill.source",
        "eval('1')",
        "f = eval",
        "exec(compile('1', 'a', 'exec'))",
        "compile('1', 'a', 'exec')",
        "import builtins\nbuiltins.exec('1')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "from os import system",
        "import os as o\no.popen('ls')",
        "import subprocess as s\ns.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=1 == 1)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import torch\ntorch.load('a')",
        "from torch import load",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import numpy as np\nnp.load('a', allow_pickle=x)",
        "AutoModel.from_pretrained('a', trust_remote_code=True)",
        "archive.extractall('a')",
        "import shutil\nshutil.unpack_archive('a')",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module(name)",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_check_finds(source):
    assert findings(source, "flaxlm/some.py"), source


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "from flaxlm import compile\ncompile.main()",
        "import ast\nast.literal_eval('1')",
        "model.eval()",
        "import subprocess\nsubprocess.run(['ls'])",
        "import numpy as np\nnp.load('a', mmap_mode='r', allow_pickle=False)",
        "lowered.compile()",
    ],
)
def test_the_check_leaves_alone(source):
    assert not findings(source, "flaxlm/some.py"), findings(source, "flaxlm/some.py")


@pytest.mark.parametrize("name", ["load", "unsafe_load", "full_load", "UnsafeLoader", "Loader"])
def test_of_yaml_the_safe_loader_alone(name):
    file = PARTLY["yaml"][0]
    assert findings(f"import yaml\nyaml.{name}", file)
    assert findings(f"from yaml import {name}", file)
    assert not findings("import yaml\nyaml.SafeLoader", file)
    assert findings("import jinja2\njinja2.Environment()", PARTLY["jinja2"][0])
