"""`flaxlm.show`: the examples are the run's own, and readable on any terminal, in Korean too."""

import textwrap

import pytest

from flaxlm.show import beside, cells, examples, main, wrap


def test_wrap_counts_cells_and_loses_nothing():
    text = "a bb ccc dddd 한국어 낱말 " + "x" * 25
    for width in (4, 7, 10, 60):
        lines = wrap(text, width)
        assert all(cells(line) <= width for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("one two three", 7) == ["one two", "three"]
    assert wrap("", 10) == [""]
    assert cells("한국") == 4 and cells("e\u0301") == 1


def test_wide_terminals_get_two_columns():
    lines = beside("한국어 in " * 12, "out", 100).splitlines()
    assert lines[0].split() == ["input", "target"]
    assert lines[1].endswith("  out")
    assert {cells(line[: line.index("target")]) for line in lines[:1]} == {2 + 47 + 2}
    assert all(cells(line) <= 100 for line in lines)


def test_narrow_terminals_get_one_above_the_other():
    assert beside("a b", "c", 40) == "  input\n    a b\n  target\n    c"


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in beside("a\x1b[2Jb\n", "c", 100)


@pytest.fixture
def experiment_file(tmp_path, monkeypatch):
    """A user's own small experiment on a text file of his own."""
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path / "cache"))
    words = [f"word{i % 97} stands beside number{i % 89}." for i in range(3000)]
    (tmp_path / "text.txt").write_text(
        "\n\n".join(" ".join(words[i : i + 30]) for i in range(0, 3000, 30))
    )
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(f"""
        '''Mine.'''
        from dataclasses import replace
        from experiments.t5_span import experiment as base
        from flaxlm.data.spec import Data, Source, Vocabulary
        from flaxlm.models import t5
        experiment = replace(
            base,
            model=t5.Model(t5.SIZES["tiny"]),
            data=Data((Source("text:{tmp_path}/text.txt"),), batch=8, length=32,
                      vocabulary=Vocabulary(size=330)),
        )
        """)
    )
    return path


def test_show_prints_the_examples_of_the_run(experiment_file, capsys, monkeypatch):
    from flaxlm.data.batches import Batches
    from flaxlm.data.prepared import open_data
    from flaxlm.experiment import load

    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--experiment", str(experiment_file), "-n", "2", "--mesh.fsdp=2"]) == 0
    text = capsys.readouterr().out
    assert "example 2" in text and "example 3" not in text
    assert "<extra_id_0>" in text
    assert any("embed/table" in line and "fsdp" in line for line in text.splitlines())

    experiment = load(str(experiment_file)).experiment
    prepared = open_data(experiment.data)
    batches = Batches(
        prepared.train, experiment.objective, prepared.vocab, data=experiment.data,
        seed=experiment.run.seed,
    )  # fmt: skip
    run = experiment.objective.show(batches[0], prepared.vocab)
    assert examples(experiment, 3) == run[:3]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which experiment?"),
        (["--experiment", "t5_spam"], "did you mean t5_span"),
        (["--experiment", "t5_span", "-n", "0"], "-n 0: expected an integer of at least 1"),
        (["--experiment", "t5_span", "-n", "x"], "-n x: expected an integer"),
        (["--experiment", "t5_span", "--model.size.heads=5", "--mesh.tensor=2"], "heads"),
    ],
)
def test_refusals(capsys, argv, message):
    assert main(argv) == 78
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
