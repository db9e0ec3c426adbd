"""Who may import whom, read from the source with ast: the boundaries that keep N models and M
objectives apart.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "flaxlm"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

# folder or file -> what of flaxlm it may import (prefixes of dotted names)
ALLOWED = {
    "models/": ("nn", "losses", "batch", "models", "sharding", "named", "errors"),
    "objectives/": (
        "losses",
        "batch",
        "decode",
        "data.encoded",
        "data.random",
        "data.rows",
        "objectives",
        "errors",
    ),
    "nn/": ("sharding", "named", "nn", "errors"),
    "tasks/": ("tasks", "data.tfds_source", "errors"),
    "losses.py": ("sharding", "nn.linear", "chunks"),
    "chunks.py": ("sharding", "nn.linear"),
    "sharding.py": ("errors",),
    "named.py": ("sharding",),
    "batch.py": ("errors",),
    "errors.py": (),
    "flags.py": ("errors",),
    "arguments.py": ("errors",),
    "data/": ("data", "tasks", "batch", "errors", "arguments"),
    "schedules.py": ("errors",),
    "safetensors.py": ("data.files", "errors"),
    "rebuild.py": ("errors", "leaves", "objectives.base"),
    "optim.py": ("named", "schedules", "errors", "moments", "averages", "rates"),
    "rates.py": ("named", "errors"),
    "moments.py": (),
    "averages.py": (),
    "guard.py": ("named", "errors"),
    "lora.py": ("named", "errors"),
    "step.py": ("sharding", "named", "batch", "guard", "lora", "optim"),
    "plan.py": (
        "sharding",
        "named",
        "batch",
        "data.examples",
        "data.random",
        "errors",
        "lora",
        "nn.kernels",
        "retention",
        "step",
    ),
}

# Where Flax itself may be named.
FLAX = ("nn/", "models/", "named.py", "step.py", "losses.py", "convert/")
FLAX += ("experiment.py", "overrides.py", "leaves.py")  # for isinstance and annotations
FLAX += ("rebuild.py", "weights.py", "lm.py")  # modules out of files
FLAX += ("lora.py",)  # paths of trees
FLAX += ("decode/",)  # takes the keys and values out of a model and puts them in


def imports(path: str):
    """(module, line) of every import of a file, functions included."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module, node.lineno
            if node.module == "flaxlm":
                yield from ((f"flaxlm.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES)
def test_imports_stay_inside_their_boundaries(path):
    rule = next((allowed for prefix, allowed in ALLOWED.items() if path.startswith(prefix)), None)
    for module, line in imports(path):
        where = f"{path}:{line} imports {module}"
        first, _, rest = module.partition(".")
        assert first not in ("experiments", "tensorflow", "torch", "transformers", "pickle"), where
        assert module != "flaxlm.train", where
        assert not module.startswith("jax._src"), where
        if first == "flax":
            assert path.startswith(FLAX), where
        if first == "flaxlm" and rest and rule is not None:
            inside = any(rest == name or rest.startswith(name + ".") for name in rule)
            assert inside, f"{where}; it may import {', '.join(rule) or 'nothing of ours'}"


def test_a_familys_name_stays_in_its_files():
    """A family's name appears in files of families alone: models, which may build on one another,
    and converters.
    """
    families = [
        path.stem
        for path in (ROOT / "models").glob("*.py")
        if path.stem not in ("__init__", "base")
    ]
    assert "t5" in families
    own = {f"{folder}/{family}.py" for folder in ("models", "convert") for family in families}
    for family in families:
        for path in FILES:
            if path in own:
                continue
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
            modules = [module for module, _ in imports(path)]
            assert family not in names, path
            assert f"flaxlm.models.{family}" not in modules, path
