"""Every experiment that ships loads and traces at full size; goldens hold what that yields.

pytest tests/test_experiments_ship.py --update-golden
"""

from pathlib import Path

import pytest

from flaxlm.experiment import load, names
from flaxlm.startup import abstract_plan, parameter_table

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", sorted(names()))
def test_traces_at_full_size(name, request):
    loaded = load(name)
    assert f"--experiment {name}" in loaded.doc, "the docstring gives the command"
    table = parameter_table(abstract_plan(loaded.experiment)) + "\n"
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(table)
    assert file.is_file(), "no golden yet: run with --update-golden and read it"
    assert table == file.read_text()
    assert table.count("\n") <= 60


@pytest.mark.parametrize("name", sorted(names()))
def test_a_recipe_for_a_slice_names_it_and_fills_it(name):
    loaded = load(name)
    mesh = loaded.experiment.mesh
    chips = mesh.slices * max(mesh.data, 1) * mesh.fsdp * mesh.tensor * mesh.sequence
    if chips == 1:  # takes what there is
        assert "Slice" not in loaded.doc
        return
    assert f"({chips} chips)" in loaded.doc
