"""metrics.jsonl, events, console and speed."""

import io
import json
import math

import pytest

from flaxlm import console, metrics
from flaxlm.console import format_values
from flaxlm.errors import StorageError
from flaxlm.metrics import Meter, MetricsWriter, peak_flops, read_lines

VALUES = {
    "data_wait": 0.004,
    "grad_norm": 0.81,
    "loss": 2.313,
    "nll": 2.3,
    "lr": 9.8e-4,
    "tokens": 1234,
    "tokens_per_second": 412_345.0,
    "mfu": 0.412,
}


def writer(directory, **arguments):
    return MetricsWriter(directory, **{"steps": 10_000, "console": io.StringIO()} | arguments)


def test_the_plain_line(tmp_path):
    stream = io.StringIO()
    with writer(tmp_path, console=stream) as out:
        out.tick(1200)
        out.write(1200, VALUES)
        out.write(1200, {"loss": 2.5, "text_loss": 3.0}, kind="eval")
    assert stream.getvalue().splitlines() == [
        "step 1200/10000 loss 2.313 lr 9.8e-4 grad_norm 0.81 412k tok/s mfu 41.2% data_wait 0.4%",
        "step 1200/10000 eval loss 2.5 text_loss 3",
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"lr": 1e-3}, "lr 1e-3"),
        ({"lr": 0.0}, "lr 0e0"),
        ({"grad_norm": 1234.5}, "grad_norm 1.23e3"),
        ({"loss": float("nan")}, "loss nan"),
        ({"loss": 10.0}, "loss 10"),
        ({"tokens_per_second": 999_900.0}, "1M tok/s"),
        ({"tokens_per_second": 12.0}, "12 tok/s"),
        ({"tokens_per_second": 4.1256e6}, "4.13M tok/s"),
    ],
)
def test_numbers_as_printed(values, text):
    assert format_values(values) == text


def test_lines_are_exact_json(tmp_path):
    loss = 0.1 + 0.2
    with writer(tmp_path) as out:
        out.write(1, {"loss": loss, "bad": float("nan"), "huge": float("-inf")})
        line = json.loads((tmp_path / "metrics.jsonl").read_text())  # flushed before close
    assert (line["step"], line["kind"], line["loss"]) == (1, "train", loss)
    assert (line["bad"], line["huge"]) == ("nan", "-inf")
    assert math.isnan(float(line["bad"])) and isinstance(line["time"], float)


def test_a_resumed_run_reads_as_a_straight_one(tmp_path):
    def part(first, last, loss):
        with writer(tmp_path, first_step=first) as out:
            for step in range(first, last):
                out.write(step, {"loss": loss})
                if step % 2 == 0:
                    out.write(step, {"loss": loss}, kind="eval")

    part(1, 6, 0.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "kind": "train", "lo')  # killed in the middle of a line
    part(5, 8, 1.0)
    lines, torn = read_lines(tmp_path / "metrics.jsonl")
    assert torn == 0
    assert [(line["step"], line["kind"], line["loss"]) for line in lines] == [
        (1, "train", 0.0), (2, "train", 0.0), (2, "eval", 0.0), (3, "train", 0.0),
        (4, "train", 0.0), (4, "eval", 0.0), (5, "train", 1.0), (6, "train", 1.0),
        (6, "eval", 1.0), (7, "train", 1.0),
    ]  # fmt: skip


def test_a_last_line_without_its_end_is_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}'
    )
    with writer(tmp_path, first_step=3) as out:
        out.write(3, {})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")[0]] == [1, 3]


def test_events_are_readable(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with writer(tmp_path) as out:
        out.write(3, {"loss": 1.5})
        out.write(3, {"loss": 2.5}, kind="eval")
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + size :]
    assert found == {("train/loss", 3): 1.5, ("eval/loss", 3): 2.5}


def test_other_processes_write_nothing(tmp_path):
    with writer(tmp_path, active=False) as out:
        out.tick(1)
        out.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"metrics\.jsonl: No such file or directory"):
        writer(tmp_path / "missing")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "90")
    terminal = Terminal()
    with writer(tmp_path, steps=100, console=terminal) as out:
        for step in range(1, 51):
            out.tick(step)
            now[0] += 2.0
        out.write(50, VALUES)
        out.write(50, {"loss": 1.0}, kind="eval")
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn[-2].startswith("step 50/100 [##########          ]  50% eta 1:42 loss 2.313 lr")
    assert all(len(text.rstrip("\n")) < 90 for text in drawn)
    assert drawn[-1] == "step 50/100 eval loss 1\n\n"


def test_meter(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    meter = Meter(flops=50.0, peak=100.0)
    assert meter.read(tokens=10) == {}
    for _ in range(4):
        with meter.waiting():
            now[0] += 0.5
        now[0] += 1.5
        meter.step()
    assert meter.read(tokens=10) == {
        "tokens_per_second": 5.0, "seconds_per_step": 2.0, "data_wait": 0.25, "mfu": 0.25,
    }  # fmt: skip
    now[0] += 99.0
    meter.restart()
    now[0] += 1.0
    meter.step()
    assert meter.read(tokens=10)["tokens_per_second"] == 10.0


def test_no_mfu_is_claimed_without_a_peak():
    meter = Meter(flops=50.0, peak=peak_flops("cpu"))
    meter.step()
    assert "mfu" not in meter.read(tokens=1)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v2", 22.5), ("TPU v3", 61.5), ("TPU v4", 275), ("TPU v4 lite", 138),
        ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
        ("TPU7x", 1153.5), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989.4), ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121), ("Tesla T4", 65), ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112), ("NVIDIA A10", 125),
        ("NVIDIA L40S", None), ("NVIDIA A10G", None), ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_peak_flops(kind, tera):
    assert peak_flops(kind) == (None if tera is None else pytest.approx(tera * 1e12))


def test_docstring_examples():
    import doctest

    for module in (metrics, console):
        found = doctest.testmod(module)
        assert found.failed == 0 and found.attempted >= 1
