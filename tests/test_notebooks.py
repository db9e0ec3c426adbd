"""The notebooks of docs/notebooks: clean as they lie there, and run from top to bottom.

They run in a kernel of their own, in a folder of their own, with a few steps of training each;
what they prepare and compile they share.
"""

import ast
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
STEPS = "FLAXLM_NOTEBOOK_STEPS"
TOOLS = ("nbclient", "nbformat", "ipykernel")

needs_tools = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TOOLS),
    reason="nbclient and ipykernel are not installed: pip install 'flaxlm[notebooks]'",
)
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def sources(path: Path, kind: str) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "compare_objectives", "finetune_classifier", "generate_and_steer", "klue_korean",
        "pretrain_t5_span",
    ]  # fmt: skip


@each
def test_a_notebook_lies_there_without_outputs(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    for cell in whole["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    text = path.read_text(encoding="utf-8")
    assert not re.search("[\U0001f000-\U0001ffff]|/home/|/work/", text)


@each
def test_a_notebook_installs_in_its_first_cell_and_explains(path):
    code, said = sources(path, "code"), sources(path, "markdown")
    assert code[0].count("%pip install -q flaxlm") == 1 and "find_spec" in code[0]
    assert said[0].startswith("# ")
    assert sum(STEPS in cell for cell in code) == 1
    assert any(STEPS in cell for cell in said)
    for cell in code[1:]:
        if not cell.startswith("%%writefile"):
            ast.parse(cell)
        assert len(cell.splitlines()) <= 60


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A cache for all notebooks, those of other processes of this run too."""
    return tmp_path_factory.getbasetemp().parent / "notebooks"


@needs_tools
@each
def test_the_notebooks_run(path, shared, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        extra_arguments=["--HistoryManager.enabled=False"],
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=environment(shared, tmp_path))
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def environment(shared: Path, home: Path) -> dict[str, str]:
    """As a user has it, on one device, with programs that compile fast."""
    cache = os.environ.get("FLAXLM_TEST_CACHE") or str(shared / "programs")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "FLAXLM_CACHE": str(shared),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "jupyter"),
        STEPS: "4",
    }
