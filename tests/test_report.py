"""The report: what it reads, what it draws, what it says when there is nothing to draw."""

import io
import json
import re
import struct

import pytest

from flaxlm import report
from flaxlm.curves import smooth, spread
from flaxlm.metrics import MetricsWriter
from flaxlm.report import RunLog, differences, final_values, main, read_run, short_names


def make_run(directory, *, steps=6, peak=1e-3, loss=lambda step: 5.0 / step, held_out="loss"):
    directory.mkdir(parents=True)
    with MetricsWriter(directory, steps=steps, console=io.StringIO()) as out:
        for step in range(1, steps + 1):
            values = {"loss": loss(step), "lr": peak, "grad_norm": 1.0, "tokens_per_second": 1e5}
            out.write(step, values)
        out.write(steps, {held_out: 1.25, "text_nll": 1.5}, kind="eval")
    experiment = {"class": "E", "run": {"class": "R", "steps": 10}, "optimizer": {"peak": peak}}
    (directory / "experiment.json").write_text(json.dumps(experiment))
    return directory


def picture_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def text_of(page):
    return re.sub(r"<[^>]*>", "|", page.read_text())


def test_one_run(tmp_path, capsys):
    run = make_run(tmp_path / "base")
    assert main([str(run)]) == 0
    assert picture_size(run / "report.png") == (1760, 1120)
    page = (run / "report.html").read_text()
    assert page.count("<img") == 1 and 'src="data:image/png;base64,' in page
    assert not re.search(r"https?://|<script|<link|url\(", page)  # stands alone
    text = text_of(run / "report.html")
    for name, value in [
        ("steps", "6 of 10"),
        ("held-out loss, last", "1.2500"),
        ("held-out text_nll, best", "1.5000"),
        ("training loss, last", "0.8333"),
        ("tokens / s, median", "100k"),
    ]:
        assert re.search(rf"\|{re.escape(name)}\|+{re.escape(value)}\|", text), name
    made = ", ".join(f"{run}/report.{suffix}" for suffix in ("png", "html and"))
    assert capsys.readouterr().out == f"wrote {made} {run}/report.md\n"
    notes = (run / "report.md").read_text()
    assert notes.startswith("![base](report.png)\n") and "1.2500 | 1.5000" in notes


def test_a_held_out_metric_is_drawn_instead_of_the_loss(tmp_path, capsys):
    run = make_run(tmp_path / "base", held_out="gain")
    before = (main([str(run)]), (run / "report.png").read_bytes())
    assert main([str(run), "--metric", "gain"]) == 0
    assert (run / "report.png").read_bytes() != before[1]
    assert final_values(read_run(run, "base"))["held-out gain, best"] == "1.2500"
    capsys.readouterr()
    assert main([str(run), "--metric", "accuracy"]) == 78
    assert "base has gain, text_nll" in capsys.readouterr().err


def test_five_runs_show_where_their_experiments_differ(tmp_path, monkeypatch):
    names = [str(make_run(tmp_path / f"run{i}", peak=i * 1e-3)) for i in range(1, 6)]
    monkeypatch.chdir(tmp_path)
    assert main([*names, "--out", "out/five"]) == 0
    assert picture_size(tmp_path / "out" / "five.png") == (1760, 1120)
    text = text_of(tmp_path / "out" / "five.html")
    assert re.search(r"optimizer\.peak\|+0\.001\|+0\.002\|+0\.003\|+0\.004\|+0\.005", text)
    assert "run.steps" not in text.partition("Where the experiments differ")[2].partition("{")[0]


def test_tasks_and_their_baselines(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]

    def write(run, place, **value):
        (run / place).mkdir(parents=True)
        whole = {"split": "validation", "main": "accuracy", **value}
        (run / place / "result.json").write_text(json.dumps(whole))

    metrics = {"accuracy": 81.5, "f1": 70.0}
    write(runs[0], "evaluate/one", task="glue/rte", metrics=metrics, baseline=52.7)
    write(runs[1], "evaluate/one", task="glue/rte", metrics={"accuracy": 60.0}, baseline=None)
    write(runs[1], "evaluate/two", task="glue/ax", metrics={})
    scores = [{"metrics": {"mean": {"accuracy": value}}} for value in (50.0, 60.0)]
    write(runs[1], "prompts/one", task="glue/rte", shots=4, scores=scores)
    assert main([*map(str, runs), "--out", str(tmp_path / "both")]) == 0
    notes = (tmp_path / "both.md").read_text()
    assert "| task | metric | baseline | a | b |" in notes
    assert "| glue/rte validation | accuracy | 52.70 | 81.50 | 60.00 |" in notes
    prompted = "glue/rte validation, 4 shots, by mean, mean of 2"
    assert f"| {prompted} | accuracy |  |  | 55.00 |" in notes and "glue/ax" not in notes
    text = text_of(tmp_path / "both.html")
    assert re.search(r"\|glue/rte validation\|+accuracy\|+52.70\|+81.50\|+60.00\|", text)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"task": "a", "split": "b", "main": "c"}'])
def test_a_damaged_result_of_a_task(tmp_path, capsys, text):
    run = make_run(tmp_path / "a")
    (run / "evaluate" / "one").mkdir(parents=True)
    (run / "evaluate" / "one" / "result.json").write_text(text)
    assert main([str(run)]) == 65
    assert "result.json is no result of an evaluation" in capsys.readouterr().err


def test_a_line_cut_in_half_is_left_out_and_said(tmp_path, capsys):
    run = make_run(tmp_path / "cut")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "kind": "train", "lo')
    assert main([str(run)]) == 0
    said = "cut: 1 line(s) of metrics.jsonl were cut in half and are left out"
    assert said in capsys.readouterr().out and said in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("prepare", "argv", "code", "message"),
    [
        (lambda p: None, [], 78, "which runs?"),
        (lambda p: None, ["gone"], 66, "gone: there is no such run directory"),
        (lambda p: (p / "a").mkdir(), ["a"], 66, "a: no metrics.jsonl there"),
        (lambda p: make_run(p / "a", steps=0), ["a", "--outt", "b"], 78, "unknown flag --outt"),
        (lambda p: make_run(p / "a"), ["a", "--out"], 78, "--out needs a value"),
        (lambda p: (p / "b").write_text(""), ["b"], 66, "b: there is no such run directory"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, prepare, argv, code, message):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith("flaxlm: ") and message in error and error.count("\n") == 1


def test_metrics_without_a_whole_line(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "ki')
    assert main([str(tmp_path)]) == 65
    assert "has no complete line yet" in capsys.readouterr().err


def test_an_unwritable_place_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "base")
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file" / "x")]) == 74
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "loss",
    [lambda step: float("nan"), lambda step: 0.0, lambda step: float("inf") if step > 2 else 1.0],
)
def test_odd_curves_are_drawn(tmp_path, loss):
    run = make_run(tmp_path / "odd", loss=loss)
    assert main([str(run)]) == 0
    assert read_run(run, "odd").series("loss")[0] == [1, 2, 3, 4, 5, 6]


def test_a_run_of_one_line_and_a_long_run(tmp_path):
    short = make_run(tmp_path / "short", steps=1)
    long = make_run(tmp_path / ("long" * 20), steps=450)
    assert main([str(short), str(long), "--out", str(tmp_path / "two")]) == 0


def test_not_finite_values_are_counted(tmp_path):
    run = make_run(tmp_path / "odd", loss=lambda step: float("nan") if step == 2 else 1.0)
    assert final_values(read_run(run, "odd"))["training loss, not finite"] == "1 times"


def test_the_held_out_metric():
    lines = [{"step": 1, "kind": "eval", "time": 0.0, "nll": 2.0, "text_nll": 3.0}]
    assert RunLog("x", lines, 0, {}).held_out == "nll"
    assert RunLog("x", [{**lines[0], "loss": 2.0}], 0, {}).held_out == "loss"
    assert RunLog("x", [], 0, {}).held_out == "loss"


def test_differences_name_what_a_run_lacks():
    runs = [RunLog("a", [], 0, {"x": 1, "y": True}), RunLog("b", [], 0, {"x": 1, "z": [1, 2]})]
    assert differences(runs) == {"y": ["true", "(absent)"], "z": ["(absent)", "[1, 2]"]}


def test_names_are_html_safe(tmp_path):
    run = make_run(tmp_path / "<b>&")
    main([str(run)])
    assert "<b>" not in (run / "report.html").read_text()


def test_short_names(tmp_path):
    paths = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"]
    assert short_names(paths) == ["a/seed0", "b/seed0"]
    assert short_names(paths[:1]) == ["seed0"]


def test_spread():
    assert spread([0.1, 0.5, 0.9], gap=0.05) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.5], gap=0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.0, 0.01, 0.5], gap=0.1) == pytest.approx([0.0, 0.1, 0.5])
    assert spread([0.99, 1.0], gap=0.1) == pytest.approx([0.9, 1.0])
    assert spread([0.3, 0.35, 0.46], gap=0.1) == pytest.approx([0.27, 0.37, 0.47])
    assert spread([], gap=0.1) == []


def test_smooth_keeps_length_and_level():
    assert smooth([1.0, 2.0]) == [1.0, 2.0]
    assert smooth([3.0] * 400) == pytest.approx([3.0] * 400)
    noisy = [float(step % 2) for step in range(1000)]
    assert max(abs(value - 0.5) for value in smooth(noisy)[20:-20]) < 0.03


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "python -m flaxlm.report RUN [RUN ...]" in capsys.readouterr().out
    assert report.FLAGS["--out"].value == "PREFIX"
