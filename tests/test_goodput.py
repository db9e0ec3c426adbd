"""Where the wall time of a run goes: every second once, over all its starts."""

import doctest
import io
import json

import pytest

from flaxlm import goodput
from flaxlm.goodput import FINISHED, KIND, USES, Ledger, carried, shares
from flaxlm.metrics import MetricsWriter, written
from flaxlm.report import final_values, main, read_run


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    return now


def test_every_second_has_one_use(clock):
    ledger = Ledger()
    clock[0] += 3
    with ledger.during("eval"):  # before the first step, and with another use inside
        clock[0] += 2
        with ledger.during("data"):
            clock[0] += 1
        clock[0] += 2
    ledger.begin()
    for _ in range(3):
        with ledger.during("data"):
            clock[0] += 0.5
        clock[0] += 4
        ledger.stepped()
    with pytest.raises(KeyError), ledger.during("save"):
        clock[0] += 7
        raise KeyError
    clock[0] += 1
    found = ledger.seconds()
    assert found == dict.fromkeys(USES, 0.0) | {
        "start": 3.0, "eval": 4.0, "data": 2.5, "steps": 13.0, "save": 7.0,
    }  # fmt: skip
    assert sum(found.values()) == clock[0] - 100
    assert list(ledger.recent) == [4.5] * 3
    ledger.add({"lost": 5.0})
    assert ledger.seconds()["lost"] == 5.0


def line(step, time, kind=KIND, **seconds):
    values = dict.fromkeys(USES, 0.0) | seconds if kind == KIND else {}
    return {"step": step, "kind": kind, "time": time, **values}


def test_a_kill_loses_the_steps_after_the_checkpoint():
    lines = [
        line(0, 10.0, start=9.0),
        line(5, 20.0, start=9.0, steps=10.0),
        line(8, 26.0, "train"),
    ]
    found = carried(lines, step=5, now=36.0)
    assert (found["start"], found["steps"], found["lost"], found["down"]) == (9.0, 10.0, 6.0, 10.0)
    # An older checkpoint: more is lost. None: all of it.
    found = carried(lines, step=3, now=36.0)
    assert (found["start"], found["steps"], found["lost"]) == (9.0, 0.0, 16.0)
    found = carried(lines[1:], step=0, now=36.0)
    assert (found["steps"], found["lost"], found["down"]) == (0.0, 6.0, 10.0)


def test_a_run_that_is_prolonged_was_not_down():
    done = line(5, 20.0, steps=10.0) | {FINISHED: 1.0}
    assert carried([done], step=5, now=9e9)["down"] == 0.0
    assert carried([line(5, 20.0)], step=5, now=25.0)["down"] == 5.0


def test_a_run_that_did_not_count_starts_to_count():
    assert carried([], step=0, now=1.0) == {}
    assert carried([line(3, 1.0, "train")], step=3, now=9.0) == {}


def test_the_cut_of_the_file_loses_no_second(tmp_path):
    def start(step, now, before):
        with MetricsWriter(tmp_path, steps=9, first_step=step + 1, console=io.StringIO()) as out:
            out.record(step, before, kind=KIND)
            out.write(step + 1, {"loss": 1.0})
            out.write(step + 2, {"loss": 1.0})

    start(0, 0, dict.fromkeys(USES, 0.0) | {"start": 4.0})
    lines = written(tmp_path)
    before = carried(lines, step=0, now=lines[-1]["time"] + 8)
    assert before["start"] == 4.0 and before["down"] == pytest.approx(8.0)
    start(0, 0, before)
    assert [x["step"] for x in written(tmp_path)] == [0, 0, 1, 2]
    assert carried(written(tmp_path), step=0, now=lines[-1]["time"])["down"] >= 8.0
    assert written(tmp_path / "none") == []


def test_the_report_shows_it(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with MetricsWriter(run, steps=4, console=io.StringIO()) as out:
        out.record(0, dict.fromkeys(USES, 0.0) | {"start": 1.0}, kind=KIND)
    assert main([str(run)]) == 0  # killed before its first step
    with MetricsWriter(run, steps=4, console=io.StringIO()) as out:
        out.write(4, {"loss": 2.0})
        seconds = dict.fromkeys(USES, 0.0) | {"steps": 80.0, "compile": 15.0, "lost": 5.0}
        out.record(4, {**seconds, FINISHED: 1}, kind=KIND)
    table = final_values(read_run(run, "run"))
    assert table["goodput"] == "80.0%"
    assert table["wall time beside steps"] == "compile 15.0%, lost 5.0%"
    assert main([str(run)]) == 0
    capsys.readouterr()
    assert "80.0%" in (run / "report.html").read_text()
    assert "goodput" in (run / "report.md").read_text()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == KIND and last["step"] == 4


def test_nothing_measured():
    assert shares(dict.fromkeys(USES, 0.0)) == {}
    assert goodput.summary(dict.fromkeys(USES, 0.0)) == "nothing measured"
    assert doctest.testmod(goodput).failed == 0
