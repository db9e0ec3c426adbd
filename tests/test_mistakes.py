"""Mistakes in an experiment file or on the command line, as a user makes them: one line that says
where and what would work, exit code 78, nothing done.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flaxlm import train
from tests import runs

ROOT = Path(__file__).resolve().parent.parent


def refusal(capsys, *argv) -> str:
    """The line with which a command is refused."""
    capsys.readouterr()
    assert train.main([str(word) for word in argv]) == 78
    found = capsys.readouterr()
    assert not found.out
    (line,) = found.err.splitlines()
    assert line.startswith("flaxlm: ") and "Traceback" not in line
    return line


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.mark.faults(22)
def test_a_file_that_fails_names_its_own_line(tmp_path, capsys, fault_row):
    path = file(
        tmp_path,
        """
        from flaxlm.models import t5
        def sizes():
            return t5.Size(depth=2, width="wide")
        experiment = t5.Model(sizes())
        """,
    )
    # Raised deep inside the library: the user's own line is the one to see.
    assert f"{path}:4: TypeError: " in refusal(capsys, "--experiment", path, "--dry-run")
    fault_row(
        injected="an exception inside an experiment file, or in what it calls",
        happened="the innermost line of the user's own file, and the reason",
        exit_code=78,
    )
    for text, message in (
        ("experiment = lambda: 1", "`experiment` is a function; set experiment = Experiment("),
        ("", "`experiment` is missing; set experiment = Experiment("),
        ("from flaxlm.experiment import Experiment as experiment", "`experiment` is a type"),
        (
            "import dataclasses\nfrom experiments.t5_span import experiment\n"
            "experiment = dataclasses.replace(experiment, data=())",
            "experiment.data: got tuple, expected a Data",
        ),
    ):
        line = refusal(capsys, "--experiment", file(tmp_path, text), "--dry-run")
        assert message in line and str(path) in line
    fault_row(
        injected="a file whose `experiment` is missing, a function, a class, or has a wrong part",
        happened="what it is, and what it must be",
        exit_code=78,
    )


@pytest.mark.faults(22)
def test_two_of_one_name_and_names_in_any_script(tmp_path, capsys, monkeypatch, fault_row):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "experiments" / "t5_span.py"
    file(tmp_path, shipped.read_text(), "t5_span.py")
    line = refusal(capsys, "--experiment", "t5_span", "--dry-run")
    assert f"two experiments are called 't5_span': write ./t5_span.py or {shipped}" in line
    fault_row(
        injected="an own file of the name of a shipped experiment, called by that name",
        happened="refused: which of the two is not guessed",
        exit_code=78,
    )
    path = file(tmp_path, shipped.read_text(), "내 실험.py")
    assert "내 실험.py:1: " in refusal(capsys, "--experiment", file(tmp_path, "1 / 0", path.name))
    file(tmp_path, shipped.read_text(), path.name)
    assert train.main(["--experiment", f"./{path.name}", "--print-config"]) == 0
    fault_row(
        injected="an experiment file with a Korean name and a space", happened="runs", exit_code=0
    )


@pytest.mark.faults(23)
def test_a_typo_ends_the_command_before_jax_is_imported(fault_row):
    words = ["--experiment", "t5_span", "--dry"]  # no prefix of --dry-run is guessed
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flaxlm.train", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "flaxlm.arguments" in imported and not {"jax", "numpy", "flax"} & imported
    assert "flaxlm: unknown flag --dry: did you mean --dry-run?" in done.stderr.splitlines()
    fault_row(
        injected="a misspelt flag, a prefix of one, a flag without its value, a key given twice",
        happened="refused with the nearest flag before jax is imported",
        exit_code=78,
    )


def test_numbers_that_once_broke_the_trace(capsys):
    line = refusal(
        capsys, "--experiment", "tiny_electra", "--dry-run", "--objective.masked.random_from=99999"
    )
    assert "objective.random_from=99999: there are only" in line
    # Rows were added one by one in a program that grew with their number.
    assert train.main(["--experiment", runs.TINY, "--dry-run", "--data.batch=2147483640"]) == 0


@pytest.mark.faults(23)
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--run.step=3"], "run (Run) has no field 'step'; did you mean steps"),
        (["--optim.clip=1"], "the experiment has no field 'optim'; did you mean optimizer?"),
        (["--optimizer.schedule.peak=abc"], "expected a number, as in --optimizer.schedule.peak="),
        (["--run.steps=1e3"], "--run.steps=1e3: expected an integer"),
        (["--run.steps=99999999999"], "expected an integer of less than 2147483648"),
        (["--data.packing=pak"], "data.packing=pak: SpanCorruption takes stream or split"),
        (["--model.compute.remat=lots"], "compute.remat='lots'"),
        (["--data.vocabulary.lowercase=1"], "=1: expected true or false"),
        (["--data.vocabulary.lowercase=True"], "=True: expected true or false"),
        (["--mesh.rules.mlp=[tensor]"], "mesh.rules.mlp=[tensor]"),
        (["--mesh.rules.mlp=None"], "mesh.rules.mlp=None"),
        (["--model.size.depth=none"], "=none: expected an integer"),
        (["--data.course=1"], "course follows from other values of data (Data), override those"),
        (["--data.sources=text:a"], "data.sources is a group of values; override one of"),
        (["--run.steps=3", "--run.steps=4"], "--run.steps is given twice"),
        (["--run.steps"], "--run.steps needs a value"),
        (["--data.length=9999999"], "data.length=9999999: must be at most 1048576"),
        (["--data.vocabulary.sentinels=99999"], "must be from 0 to 10000"),
    ],
)
def test_a_mistyped_override_is_refused(words, line, capsys, fault_row):
    found = refusal(capsys, "--experiment", runs.TINY, "--dry-run", *words)
    assert line in found, found
    fault_row(
        injected="overrides of unknown or derived fields, of wrong types, with unknown choices, "
        "`True`, `1`, `[a]`, `None`, a key twice, numbers without bound",
        happened="one line with the field, what was expected and an example",
        exit_code=78,
    )
