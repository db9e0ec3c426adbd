"""The command end to end: it trains, reports, resumes bit for bit, and refuses what it should."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest

from flaxlm import train
from tests import runs


@pytest.fixture(scope="module")
def straight(text_file, data_cache, tmp_path_factory):
    """A run of 60 steps that nobody disturbs."""
    directory = tmp_path_factory.mktemp("straight")
    argv = runs.arguments(text_file, directory, "--run.steps=60", "--run.save_every=7")
    process = runs.start(argv, data_cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return directory, output


def test_a_run_says_what_it_does_and_leaves_its_files(straight):
    directory, output = straight
    for label in (
        "experiment",
        "file",
        "model",
        "objective",
        "devices",
        "batch",
        "per device",
        "data",
        "run",
    ):
        assert re.search(rf"^ *{label}  \S", output, re.MULTILINE), label
    line = r"^step 60/60 .*loss [\d.]+ .*lr 1e-3 .*tok/s data_wait [\d.]+%$"
    assert re.search(line, output.replace("grad_norm", "loss", 0), re.MULTILINE), output
    assert output.count("held-out example") == 5
    seen = runs.metrics(directory)
    assert [line["step"] for line in seen] == list(range(1, 61))
    assert np.mean([line["loss"] for line in seen[-5:]]) < seen[0]["loss"] - 0.2
    assert [line["step"] for line in runs.metrics(directory, "eval")] == [*range(4, 60, 4), 60]
    evaluation = json.loads((directory / "evaluation.json").read_text())
    assert evaluation["step"] == 60 and evaluation["unigram_entropy"] > 1
    assert (directory / "samples.txt").read_text().count("predicted") == 5
    assert list((directory / "tensorboard").glob("events*"))
    assert json.loads((directory / "experiment.json").read_text())["run"]["steps"] == 60
    assert not (directory / "RUN.lock").exists()


@pytest.mark.slow
def test_a_signal_saves_at_the_next_step_and_nothing_is_lost(
    straight, text_file, data_cache, tmp_path
):
    reference, _ = straight
    argv = runs.arguments(text_file, tmp_path, "--run.steps=60", "--run.save_every=0")
    process = runs.start(argv, data_cache)
    wait_for_step(process, tmp_path, 10)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "SIGTERM: stopped, the state is saved" in output
    stopped = runs.metrics(tmp_path)[-1]["step"]
    process = runs.start(argv, data_cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"resumed after step {stopped}" in output
    losses = [line["loss"] for line in runs.metrics(tmp_path)]
    assert losses == [line["loss"] for line in runs.metrics(reference)]


@pytest.mark.slow
def test_phases_killed_and_resumed_are_the_straight_run_bit_for_bit(
    text_file, data_cache, tmp_path
):
    seen = {}
    for name, moments in (("straight", ()), ("killed", (13, 29, 47))):
        directory = tmp_path / name
        argv = runs.arguments(text_file, directory, "--run.steps=60", "--run.save_every=7")
        argv[1] = runs.TINY.replace("tiny_span", "tiny_phases")
        for target in moments:  # in each of the phases
            process = runs.start(argv, data_cache)
            wait_for_step(process, directory, target)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        process = runs.start(argv, data_cache)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "; after 20 steps 16 rows of length 48; after 40 steps 8 rows of length 48" in output
        lines = runs.metrics(directory)
        assert [line["step"] for line in lines] == list(range(1, 61))
        seen[name] = [(line["loss"], line["nll"]) for line in lines], runs.parameters(directory, 60)
    assert seen["killed"][0] == seen["straight"][0]
    assert all(
        a.tobytes() == b.tobytes()
        for a, b in zip(seen["killed"][1], seen["straight"][1], strict=True)
    )
    # A phase has its own lengths: on the command line too, and they are the run's identity.
    argv += ["--data.phases.1.length=64"]
    process = runs.start(argv, data_cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 78, output
    assert "data.phases.1.length  saved 48, now 64" in output


def wait_for_step(process, directory, step):
    """Wait until metrics.jsonl holds `step`; fail if the process ends before."""
    deadline = time.monotonic() + 240
    file = directory / "metrics.jsonl"
    while time.monotonic() < deadline:
        if file.exists() and f'"step": {step}, ' in file.read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never reached")


@pytest.mark.parametrize(
    ("overrides", "code", "line"),
    [
        (["--run.stpes=3"], 78, r"run\.stpes.*did you mean .*steps"),
        (["--run.steps=many"], 78, r"run\.steps=many: expected an? int"),
        (["--run.steps=0"], 78, r"run\.steps=0: must be at least 1"),
        (["--mesh.fsdp=3"], 78, r"does not fit 8 device"),
        (["--data.batch=12"], 78, r"data\.batch=12 rows cannot be split over 8 .*8 or 16"),
        (["--data.packing=pak"], 78, r"data\.packing=pak: SpanCorruption takes stream or split"),
        (["--mesh.data=1", "--mesh.tensor=8"], 78, r"'heads'.*cannot be split 8 ways.*tensor="),
        (["--model.size.vocab=256"], 78, r"model\.size\.vocab=256 is smaller than the vocabulary"),
        (["--data.sources.0.uri=text:/nowhere/*.txt"], 66, r"/nowhere/\*\.txt"),
        (["--data.sources.0.uri=corpus:/nowhere"], 66, r"/nowhere"),
        (["--run.directory=/dev/null/run"], 73, r"/dev/null/run"),
        (["--data.vocabulary.path=/nowhere.model"], 66, r"/nowhere\.model"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    overrides, code, line, text_file, data_cache, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    given = {override.partition("=")[0] for override in overrides}
    argv = runs.arguments(text_file, tmp_path / "run")
    argv = [word for word in argv if word.partition("=")[0] not in given] + overrides
    assert train.main(argv) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("flaxlm: ") and re.search(line, error), error


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"good text\n\n\xff\xfe broken", r":3:.*UTF-8"),
        (b"", r"0 documents after filtering \(in 1, dropped: empty 1\)"),
    ],
)
def test_unusable_text_is_named_with_its_place(
    content, line, data_cache, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    file = tmp_path / "input.txt"
    file.write_bytes(content)
    assert train.main(runs.arguments(file, tmp_path / "run")) == 65
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(file) in error and re.search(line, error), error


@pytest.mark.faults(11)
def test_a_directory_of_another_experiment_is_refused(
    straight, text_file, data_cache, capsys, monkeypatch, fault_row
):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    directory, _ = straight
    changed = ["--model.size.depth=2", "--model.size.vocab=640", "--data.vocabulary.size=300"]
    argv = runs.arguments(text_file, directory, "--run.steps=60", "--run.save_every=7", *changed)
    before = sorted(os.listdir(directory))
    assert train.main(argv) == 78
    first, *table = capsys.readouterr().err.rstrip().splitlines()
    assert first.startswith(f"flaxlm: {directory} holds another experiment (3 fields differ)")
    assert table == [
        "  model.size.depth      saved 1, now 2",
        "  model.size.vocab      saved 512, now 640",
        "  data.vocabulary.size  saved 400, now 300",
    ]
    assert sorted(os.listdir(directory)) == before
    fault_row(
        injected="the command of a run again, with other model sizes and another vocabulary size",
        happened="refused with a table of the fields that differ, before an array is read",
        exit_code=78,
    )


def test_a_run_without_held_out_text(text_file, data_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLAXLM_CACHE", str(data_cache))
    argv = ["--run.steps=2", "--data.held_out_share=0", "--mesh.data=8"]
    assert train.main(runs.arguments(text_file, tmp_path, *argv)) == 0
    assert "step 2/2" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": 2}


@pytest.mark.faults(22)
def test_an_unknown_experiment_names_the_nearest(capsys, fault_row):
    assert train.main(["--experiment", "t5_spam"]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean t5_span" in line and line.count(" or ") == 2
    fault_row(injected="`--experiment t5_spam`", happened="the three nearest names", exit_code=78)


def test_list_config_and_dry_run(capsys):
    assert train.main(["--list"]) == 0
    assert "t5_11b_c4" in capsys.readouterr().out
    assert train.main(["--experiment", "t5_11b_c4", "--print-config", "--run.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"run\.steps +7 +command line", printed)
    assert train.main(["--experiment", "t5_11b_c4", "--dry-run"]) == 0
    assert "11,307,321,344 parameters" in capsys.readouterr().out
