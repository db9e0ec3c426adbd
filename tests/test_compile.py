"""flaxlm.compile and flaxlm.aot: topologies by name, refusals, what is reported, what is suggested.

Programs are compiled for the simulated CPU devices with a memory limit of our choice; one test
compiles for a TPU, where libtpu is installed.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flaxlm import compile as command
from flaxlm.aot import devices, report, search, table, topologies
from flaxlm.aot.chips import CHIPS
from flaxlm.aot.fit import compile_step, largest, place
from flaxlm.aot.memory import out_of_memory
from flaxlm.arguments import parse_argv
from flaxlm.data.spec import Phase
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.experiment import load, names
from flaxlm.overrides import resolve
from flaxlm.sharding import Mesh
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


def cpu_target(*, hbm: int, count: int = 4) -> devices.Target:
    """Simulated devices that are said to be chips with so many bytes."""
    shape = {4: (2, 2), 8: (2, 4)}[count]
    return devices.Target(
        topologies.Topology("v5e", shape), CHIPS["v5e"], jax.devices()[:count], hbm
    )


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v5e:3x4", "v5e:3x4", 12),
        ("v6e-8", "v6e:2x4", 8),
        ("Trillium:2x2", "v6e:2x2", 4),
        ("v7:2x2x1", "tpu7x:2x2x1", 8),
        ("h100:8", "h100:1x8", 8),
        ("h200:4x8", "h200:4x8", 32),
    ],
)
def test_topologies_by_name(text, name, count):
    topology = topologies.parse(text)
    assert (topology.name, topology.devices) == (name, count)
    assert topologies.parse(topology.name) == topology


def test_slices_multiply():
    topology = topologies.parse("v5e:4x4", slices=3)
    assert topology.devices == 48 and str(topology) == "v5e:4x4 x 3 slices"
    assert topologies.larger(topology).chips == 96
    assert topologies.larger(topologies.parse("v5e:16x16")) is None


@pytest.mark.parametrize(
    ("text", "slices", "says"),
    [
        ("", 1, "which slice"),
        ("v5p", 1, "expected CHIP:AxBxC"),
        ("v5p:4x4", 1, "a v5p slice has 3 dims, as in v5p:4x4x4"),
        ("v5x:4x4x4", 1, "did you mean"),
        ("v5e:32x32", 1, "1 to 256 chips"),
        ("v5p-100", 1, "sizes are 8, 16, 32"),
        ("tpu7x-64", 1, "write its shape"),
        ("h100:1x2x3", 1, "HOSTSxGPUS"),
        ("h100:8", 2, "GPUs have none"),
    ],
)
def test_topologies_refused(text, slices, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        topologies.parse(text, slices=slices)


def test_the_command_refuses_in_one_line(capsys):
    for argv, code, says in [
        (["--experiment", "tiny_gpt2"], 78, "which slice"),
        (["--topology", "v5e:2x2", "--serach"], 78, "did you mean --search"),
        (["--experiment", "tiny_gpt2", "--topology", "v5e:2x2", "--slices", "no"], 78, "integer"),
    ]:
        assert command.main(argv) == code
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
    assert command.main(["--help"]) == 0 and command.main(["--list"]) == 0
    assert "tpu7x:4x4x4" in capsys.readouterr().out


def test_without_its_compiler_a_topology_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for text, extra in [("v5p:4x4x4", "flaxlm[tpu]"), ("h100:8", "flaxlm[cuda13]")]:
        with pytest.raises(MissingInput, match=re.escape(f"pip install '{extra}'")):
            devices.target(topologies.parse(text))


def test_a_mesh_of_another_size_is_told_what_would_work():
    experiment = dataclasses.replace(tiny.EXPERIMENT, mesh=Mesh(data=16, fsdp=2))
    with pytest.raises(ConfigError) as refused:
        place(experiment, topologies.parse("v5p:4x4x4"))
    assert str(refused.value) == (
        "mesh: data=16 x fsdp=2 is 32 device(s), v5p:4x4x4 has 64; take --topology v5p:2x4x4 or "
        "--mesh.data=32"
    )
    placed = place(experiment, topologies.parse("v5p:2x4x4", slices=2))
    assert placed.mesh.slices == 2
    with pytest.raises(ConfigError, match="--slices 2"):
        place(placed, topologies.parse("v5p:2x4x4"))


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.50G) exceeds available HBM (15.75G). HLO module: jit_step.",
        "Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded hbm capacity "
        "by 768.00M.",
    ],
)
def test_the_numbers_of_a_refusal_are_read(text):
    found = out_of_memory(RuntimeError(text))
    assert (found.needed, found.available) == (16.5 * 2**30, 15.75 * 2**30)
    assert out_of_memory(RuntimeError("something else")) is None


@pytest.fixture(scope="module")
def fits():
    """Three phases of the tiny T5 on four devices with plenty of memory."""
    data = dataclasses.replace(
        tiny.EXPERIMENT.data,
        length=32,
        phases=(Phase(start=3, length=64, batch=8), Phase(start=4, length=64, batch=16)),
    )
    experiment = dataclasses.replace(tiny.EXPERIMENT, data=data, mesh=Mesh(data=2, fsdp=2))
    return compile_step(experiment, cpu_target(hbm=2**34))


def test_every_length_is_compiled_at_its_largest_batch(fits):
    assert [(fit.start, fit.length) for fit in fits] == [(0, 32), (4, 64)]
    assert all(fit.fits for fit in fits)
    assert largest(fits) is fits[1]


def test_the_report_is_labelled_and_its_json_adds_up(fits):
    fit = fits[1]
    text = report.as_text(fit, cpu_target(hbm=2**34))
    assert "data=2 x fsdp=2" in text and "GiB left" in text
    assert "% MFU, both ESTIMATED" in text
    found = json.loads(json.dumps(report.as_json(fit)))
    memory = found["hbm"]["compiled"]
    assert found["hbm"]["needed"] == fit.memory.total
    assert found["hbm"]["headroom"] == found["hbm"]["available"] - found["hbm"]["needed"]
    assert memory["arguments"] > 0 and memory["temporaries"] > 0
    assert found["estimate"]["assumes"] == report.ASSUMES
    assert found["estimate"]["collectives"], "a split mesh exchanges something"
    assert found["estimate"]["flops_per_device"] > 0


def test_what_does_not_fit_gets_changes_that_do():
    experiment = dataclasses.replace(tiny.EXPERIMENT, mesh=Mesh(data=4))
    (fit,) = compile_step(experiment, cpu_target(hbm=2**34))
    limit = fit.memory.total - 1
    target = cpu_target(hbm=limit)
    (failed,) = compile_step(experiment, target)
    assert not failed.fits and failed.headroom < 0
    assert "does not fit by" in report.as_text(failed, target)
    said = []
    trials = search.suggestions(experiment, target, failed, say=said.append)
    assert trials and said
    assert all(trial.fit.needed <= limit for trial in trials)
    assert [trial.cost for trial in trials] == sorted(trial.cost for trial in trials)
    split = [dict(trial.overrides) for trial in trials]
    assert {"mesh.data": "1", "mesh.fsdp": "4"} in split
    assert "--mesh.fsdp=4" in search.advice(trials)


def test_a_search_ranks_what_fits_by_time(monkeypatch):
    monkeypatch.setattr(search, "_MESHES", 2)
    monkeypatch.setattr(search, "POLICIES", ("full", "none"))
    experiment = dataclasses.replace(tiny.EXPERIMENT, mesh=Mesh(data=4))
    target = cpu_target(hbm=2**34)
    trials = search.search(experiment, target, say=lambda line: None)
    assert len(trials) == 2 and all(trial.fit.fits for trial in trials)
    assert [dict(trial.overrides)["model.compute.remat"] for trial in trials] == ["none"] * 2
    text = search.ranking(trials)
    assert "data=4" in text and "fsdp" in text and "est. step" in text


def test_meshes_of_a_search_divide_what_they_split():
    target = cpu_target(hbm=2**34, count=8)
    found = [dict(mesh) for mesh in search.meshes(tiny.EXPERIMENT, target)]
    assert found[0] == {
        "mesh.data": "8", "mesh.fsdp": "1", "mesh.tensor": "1", "mesh.sequence": "1"
    }  # fmt: skip
    assert len(found) == len({tuple(mesh.items()) for mesh in found}) > 2
    for mesh in found:
        sizes = {axis.removeprefix("mesh."): int(size) for axis, size in mesh.items()}
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] * sizes["sequence"] == 8
        assert sizes["sequence"] == 1, "16 rows are enough for 8 devices"


def test_every_slice_that_an_experiment_names_is_one():
    found = {name: table.slices_of(load(name).doc) for name in names()}
    assert [topology.name for topology, _ in found["gpt3_13b"]] == ["v5p:4x4x8"]
    assert [topology.chips for topology, _ in found["gpt3_175b"]] == [512, 4096]
    for name, slices in found.items():
        for topology, added in slices:
            place(resolve(parse_argv(["--experiment", name, *added.split()])).experiment, topology)


def test_the_table_is_written_between_its_marks(tmp_path, fits):
    page = tmp_path / "scale.md"
    page.write_text(f"above\n\n{table.BEGIN}\nold\n{table.END}\n\nbelow\n")
    found = {
        "experiment": "tiny", "topology": "v5e:2x2", "chips": 4, "software": {"jax": "1"},
        "fits": True, "largest": 1, "phases": [report.as_json(fit) for fit in fits],
    }  # fmt: skip
    table.write(page, [found])
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2].startswith("| `tiny` | v5e:2x2 | 4 | data 2 x fsdp 2 | 16 x 64 |")
    assert len({row.count("|") for row in rows}) == 1


def compiled(name: str, topology: str, file: Path, *overrides: str) -> dict:
    """The JSON of the command, run in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "flaxlm.compile", "--experiment", name, "--topology", topology]
        + ["--out", str(file), *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "ESTIMATED" in done.stdout or done.returncode == 1, done.stdout
    return json.loads(file.read_text())


@pytest.mark.libtpu
def test_a_step_compiles_for_a_tpu(tmp_path):
    found = compiled("tiny_gpt2", "v5e:2x2", tmp_path / "tiny.json", "--model.compute.scan=true")
    (phase,) = found["phases"]
    assert found["fits"] and found["declaration"]["model"]["compute"]["scan"]
    assert phase["hbm"]["available"] == 15.75 * 2**30
    assert phase["mesh"]["data"] == 4
    # Its gradients are exchanged whole.
    assert phase["estimate"]["collectives"]["all-reduce"]["bytes"] > 1e6
    assert phase["estimate"]["step_seconds"] > 0


@pytest.mark.libtpu
@pytest.mark.slow
def test_the_committed_table_is_what_compiling_gives(tmp_path):
    """A sample of docs/scale.md: the memory of one experiment, to a few percent."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "scale.md").read_text().splitlines()
        if line.startswith("| `distilbert_base`")
    ]
    if not rows:
        pytest.skip("docs/scale.md has no row of distilbert_base yet")
    name, topology, *_ = rows[0]
    found = compiled(name.strip("`"), topology, tmp_path / "sample.json")
    memory = max((phase["hbm"] for phase in found["phases"]), key=lambda hbm: hbm["needed"])
    arguments, temporaries = map(float, re.findall(r"[\d.]+", rows[0][5])[:2])
    got = memory["compiled"]
    assert got["arguments"] / 2**30 == pytest.approx(arguments, rel=0.03, abs=0.01)
    assert got["temporaries"] / 2**30 == pytest.approx(temporaries, rel=0.05, abs=0.01)
