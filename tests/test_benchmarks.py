"""The benchmark scripts run: their numbers are of the machine, their logic is tested here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """As when a script of the folder is run."""
    monkeypatch.syspath_prepend(str(FOLDER))


class Fake:
    """A contender that was measured."""

    def __init__(self, seconds, cpu=None):
        self.ready = {"parameters": 1000, "start": 2.0}
        self.times = {"wall": seconds, "cpu": cpu or seconds}

    def seconds(self, clock="wall"):
        return self.times[clock]


def lines_of(script: str, *arguments: str, only: str) -> list[str]:
    """What a script prints that measures one contender."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment["PYTHONPATH"] = str(FOLDER.parent)
    run = subprocess.run(
        [sys.executable, FOLDER / script, *arguments, "--contenders", only],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.splitlines()


def test_gpu_step_runs_in_miniature():
    """The whole way without torch: a worker process, its turn, the table."""
    lines = lines_of("gpu_step.py", "--tiny", "--shapes", "bert_tiny", only="flaxlm scanned")
    (row,) = [line for line in lines if line.startswith("| flaxlm scanned |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "139,840" and float(cells[3]) > 0
    assert cells[6:] == ["-", "-"]  # a CPU has no MFU and counts no memory
    assert lines[-1] == "measured on: cpu"


def test_generate_runs_in_miniature():
    lines = lines_of("generate.py", "--shapes", "tiny", "--rounds", "1", only="flaxlm")
    (row,) = [line for line in lines if line.startswith("| flaxlm |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[3].replace(",", "")) > 0 and cells[5] == "-"


def test_shapes_of_the_wrong_table_are_refused(monkeypatch, capsys):
    import gpu_step

    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--tiny", "--shapes", "gpt2_124m"])
    with pytest.raises(SystemExit):
        gpu_step.main()
    assert "gpt2_124m: with --tiny there are gpt2_tiny" in capsys.readouterr().err


def test_peers_that_are_not_installed_are_left_out_with_a_line(monkeypatch, capsys):
    import gpu_step

    monkeypatch.setattr(gpu_step.turns, "missing", lambda name: "torch")
    made = gpu_step.measure({}, ["torch eager"], rounds=2, steps=1, environment={})
    assert made == {}
    assert capsys.readouterr().out == "torch eager: left out, torch not installed\n"


def test_gpu_table_gives_mfu_and_the_ratio_to_the_better_peer(capsys):
    import gpu_step

    def turns(seconds, **more):
        words = {"parameters": 7, "start": 3.0, "peak": 2**31, "device": "NVIDIA H100 80GB HBM3"}
        return [words | {"wall": wall, "flops": None} | more for wall in seconds]

    found = {
        "flaxlm": turns([0.5, 0.5], flops=0.5 * 494.7e12),
        "flaxlm scanned": turns([0.8, 0.8], flops=0.5 * 494.7e12),
        "torch eager": turns([2.0, 2.0]),
        "torch compiled": turns([1.0, 0.5]),
    }
    gpu_step.print_table("x", gpu_step.SHAPES["gpt2_124m"], found, rounds=2, steps=1)
    out = capsys.readouterr().out
    assert "| flaxlm | 7 | 3 | 500.0 | 65,536 | 494.7 | 50.0% | 2.0 |" in out
    assert "| torch compiled | 7 | 3 | 750.0 | 43,691 | 329.8 | 33.3% | 2.0 |" in out
    assert "flaxlm is 1.50 times as fast as torch compiled" in out


def test_step_table_pairs_the_turns_of_a_round(capsys):
    """A round in which the machine was slow for everybody does not move the ratio."""
    import train_step

    contenders = {
        "flaxlm": Fake([1.0, 10.0, 1.0]),
        "torch eager": Fake([2.0, 20.0, 2.0], cpu=[3.0, 3.0, 3.0]),
        "torch compiled": Fake([1.5, 15.0, 1.5]),
    }
    train_step.print_table(contenders, tokens=100)
    out = capsys.readouterr().out
    assert "| flaxlm | 1,000 | 2 | 100 | 1.000 | 2.00 | 3.00 |" in out
    assert "flaxlm is 1.50 times as fast as torch compiled" in out


def test_batches_are_what_both_sides_need():
    from steps import shapes

    shape = shapes.shape("bert", 64, 2, rows=3, length=16, vocab=50, slots=5)
    made = shapes.batch(shape)
    assert {name: x.shape for name, x in made.items()} == {
        "tokens": (3, 16), "targets": (3, 16), "slots": (3, 5), "slot_targets": (3, 5),
    }  # fmt: skip
    assert (np.diff(made["slots"], axis=1) > 0).all() and made["slots"].max() < 16
    assert json.loads(json.dumps(shape)) == shape
    assert shapes.tokens(shapes.shape("t5", 64, 2, rows=3, length=16, targets=4, vocab=50)) == 60


def test_every_shape_is_a_model_of_ours():
    """All families and sizes of both scripts trace; nothing is computed."""
    import gpu_step
    import train_step
    from steps import ours, shapes

    from flaxlm.nn.compute import Compute

    for shape in (train_step.SHAPES | gpu_step.SHAPES).values():
        small = shape | {"rows": 1, "length": 32, "targets": 8, "slots": shape["slots"] and 4}
        make = ours._MAKERS[shape["family"]]
        model, objective, features = make(small, Compute(), shapes.batch(small))
        named = {name: x.shape for name, x in features.items()}
        assert model.flops(named) > 0
        assert {term.weights for term in objective.terms.values()} <= set(features)
