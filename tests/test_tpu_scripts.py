"""The scripts of tpu/ against a fake cloud (fake_cloud/): no real one was at hand.

A worker is a folder, ssh runs the command here, the training is a stand-in that counts steps; one
test puts the real one in its place.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import runs
from tests.pods import NOTHING, ROOT, TOOLS, FakeCloud, needs_linux

pytestmark = needs_linux
SCRIPTS = sorted(path.name for path in (ROOT / "tpu").glob("*.sh"))


@pytest.fixture
def cloud(tmp_path):
    with FakeCloud(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "name", [name for name in SCRIPTS if name not in ("common.sh", "worker.sh")]
)
def test_help_and_dry_run_call_nothing(name, cloud):
    assert f"tpu/{name}" in cloud(name, "--help")
    said = cloud(
        name, "--dry-run", *(["--", "-x", "y z"] if name in ("launch.sh", "run.sh") else [])
    )
    lines = [line for line in said.splitlines() if line.startswith("gcloud compute tpus ")]
    assert lines and all("--project=p --zone=z" in line for line in lines)
    assert cloud.calls() == []
    assert cloud(name, "--nonsense", code=78).startswith("tpu: no option --nonsense")


def test_create_says_what_is_there(cloud):
    cloud("create.sh")
    assert "slice is there: WAITING_FOR_RESOURCES" in cloud("create.sh")
    (call,) = cloud.calls("create")
    assert {"--node-id=slice", "--spot", "--valid-until-duration=24h"} <= set(call)
    assert "slice WAITING" in cloud("status.sh") or cloud("status.sh")
    assert "nothing is left" in cloud("delete.sh")
    assert cloud.left() == NOTHING
    assert "nothing is left" in cloud("delete.sh")  # of something absent


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5P' has been exceeded", 75),
        ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", 77),
        ("ERROR: INVALID_ARGUMENT: accelerator v5q-8 is not known", 78),
    ],
)
def test_create_tells_errors_apart(error, code, cloud):
    cloud.scenario(faults=[{"match": "queued-resources create", "times": 1, "error": error}])
    assert error in cloud("create.sh", code=code)


def test_an_unknown_state_is_not_an_absence(cloud):
    cloud("create.sh")
    error = "ERROR: UNAVAILABLE: network is unreachable"
    cloud.scenario(faults=[{"match": "describe", "times": 9, "error": error}])
    assert "not known" in cloud("delete.sh", code=1)
    assert "not known" in cloud("create.sh", code=1)


def test_delete_finds_a_node_that_the_cloud_forgot(cloud):
    cloud.scenario(leaks=True)
    cloud("create.sh")
    cloud.wait_until_active()
    cloud("delete.sh")
    assert len(cloud.calls("tpu-vm", "delete")) == 1
    assert cloud.left() == NOTHING


def test_setup_retries_the_worker_that_fails(cloud):
    fault = {"match": "ssh slice worker=1 .*worker.sh setup", "times": 2, "code": 255}
    cloud.scenario(workers=2, faults=[fault])
    cloud("create.sh")
    cloud.wait_until_active()
    said = cloud("setup.sh")
    assert "one by one" in said and "all workers are ready" in said
    log = (cloud.cloud / "tools.log").read_text()
    assert log.count("uv venv --managed-python --python 3.12 ") == 2  # once per worker
    assert log.count("uv pip install") == log.count("--constraint") == 2
    assert log.count("gcsfuse --implicit-dirs") == 2 and f" bucket {cloud.runs}" in log
    cloud("setup.sh")  # again: everything stays
    assert (cloud.cloud / "tools.log").read_text().count("uv venv") == 2
    cloud.scenario(workers=2, faults=[{**fault, "times": 99}])
    assert "slice: worker 1 failed 3 times, the last time with 255" in cloud("setup.sh", code=1)


def test_launch_passes_arguments_unchanged_and_stop_ends_only_its_run(cloud):
    cloud.scenario(workers=2, train=[{"steps": 100_000}] * 2)
    cloud("create.sh")
    cloud.wait_until_active()
    assert "tpu/setup.sh" in cloud("launch.sh", "--", "--experiment", "x", code=78)
    cloud("setup.sh")
    odd = ["--experiment", "./my lab/it's.py", '--a="b c" $HOME `id`', "--b=*;\\n", "--c=\n", ""]
    cloud("launch.sh", "--", *odd)
    cloud.wait_for(lambda: len(cloud.starts) == 2)
    for start in cloud.starts:
        directory = f"--run.directory={cloud.runs}/first"
        assert start["argv"] == ["-m", "flaxlm.train", *odd, directory]
        assert start["env"]["JAX_COORDINATOR_PORT"] == "8476"
        assert start["env"]["EXTRA"] == "a b"
        assert "MEGASCALE_NUM_SLICES" not in start["env"]
    assert "runs already" in cloud("launch.sh", "--", *odd)
    assert len(cloud.starts) == 2
    assert "--run=NAME" in cloud("launch.sh", "--", "--run.directory=/elsewhere", code=78)
    cloud("launch.sh", "--run=other", "--", "--experiment", "x")
    cloud.wait_for(lambda: len(cloud.starts) == 4)
    others = [start["pid"] for start in cloud.starts[2:]]
    status = cloud("status.sh")
    assert len(re.findall(r"host=slice-w\d run=first state=running", status)) == 2
    assert "slice-w1: from step" in cloud("logs.sh", "--worker=1")
    said = cloud("stop.sh")
    assert said.count("first stopped with 75") == 2
    assert "first does not run" in cloud("stop.sh")
    for start in cloud.starts[:2]:
        assert not Path(f"/proc/{start['pid']}").exists()
    assert all(Path(f"/proc/{pid}").exists() for pid in others)
    cloud("delete.sh")
    assert cloud.left() == NOTHING


def test_stop_kills_what_does_not_listen(cloud):
    cloud.configure(GRACE_SECONDS=1)
    cloud.scenario(train=[{"steps": 100_000, "deaf": True}])
    cloud("create.sh")
    cloud.wait_until_active()
    cloud("setup.sh")
    cloud("launch.sh", "--", "--experiment", "x")
    cloud.wait_for(lambda: "from step" in cloud("logs.sh"))
    assert "did not end in 1 s: killed" in cloud("stop.sh")
    assert cloud.processes() == []
    assert "state=exited code=137 stopped=yes" in cloud("status.sh")


def test_run_survives_two_preemptions(cloud):
    cloud.scenario(
        workers=2,
        preempt=[f"test $(cat ../runs/first/step) -ge {steps}" for steps in (3, 60)],
        states=[["WAITING_FOR_RESOURCES", "PROVISIONING"], ["PROVISIONING"]],
        train=[{"holds": 3}, {"holds": 60}, {"steps": 110}],
    )
    (cloud.runs / "first").mkdir()
    (cloud.runs / "first" / "step").write_text("0")
    said = cloud("run.sh", "--delete", "--", "--experiment", "x")
    assert said.count("slice is SUSPENDED: deleted and created again") == 2
    assert "first is done" in said and "nothing is left of slice" in said
    assert len(cloud.calls("queued-resources", "create")) == 3
    firsts = [start["step"] for start in cloud.starts if start["host"] == "slice-w0"]
    assert len(firsts) == 3 and firsts[0] == 0 and 3 <= firsts[1] < firsts[2]  # it went on
    assert firsts[2] >= 60 and (cloud.runs / "first" / "step").read_text() == "110"
    assert cloud.left() == NOTHING


def test_run_stops_at_once_where_trying_again_is_useless(cloud):
    cloud.scenario(workers=2, train=[[{"steps": 100_000}, {"exit": 78}]])
    said = cloud("run.sh", "--", "--experiment", "x", code=78)
    assert "flaxlm: said for exit 78" in said
    assert "slice stays and costs" in said
    assert len(cloud.starts) == 2
    assert cloud.processes() == []
    assert "said for exit 78" in (cloud.folder / "runs/tpu/first.log").read_text()
    assert cloud.left()["queues"] == ["slice"]


def test_run_tries_again_what_may_pass(cloud):
    """Worker 1 aborts as JAX does, worker 0 hangs: both are ended and the run goes on."""
    cloud.scenario(workers=2, train=[[{"steps": 100_000}, {"exit": 134}], {"exit": 71}])
    said = cloud("run.sh", "--delete", "--", "--experiment", "x")
    assert "attempt failed with 134 (1 of 3)" in said and "failed with 71 (2 of 3)" in said
    assert "first is done" in said and len(cloud.starts) == 6
    assert len(cloud.calls("queued-resources", "create")) == 1  # the slice was good all along
    assert cloud.left() == NOTHING


def test_run_gives_up(cloud):
    quota = "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded"
    cloud.scenario(faults=[{"match": "queued-resources create", "times": 9, "error": quota}])
    said = cloud("run.sh", "--", "--experiment", "x", code=75)
    assert "3 attempts in a row failed" in said
    assert len(cloud.calls("create")) == 3


def test_run_ends_when_the_run_is_stopped(cloud):
    cloud.scenario(train=[{"steps": 100_000}])
    loop = cloud.start("run.sh", "--", "--experiment", "x")
    cloud.wait_for(lambda: cloud.starts)
    cloud.wait_for(lambda: "from step" in cloud("logs.sh"))
    cloud("stop.sh")
    said, _ = loop.communicate(timeout=60)
    assert loop.returncode == 75 and "was stopped by tpu/stop.sh" in said


def test_slices_know_each_other(cloud):
    cloud.configure(SLICES=2)
    cloud.scenario(workers=2, faults=[{"match": "ssh slice-1 worker=1 .*start", "times": 1}])
    said = cloud("run.sh", "--delete", "--", "--experiment", "x", "--mesh.slices=2")
    (call,) = cloud.calls("create")
    assert {"--node-count=2", "--node-prefix=slice"} <= set(call)
    seen = {
        (
            start["host"][:7],
            *(
                start["env"][f"MEGASCALE_{name}"]
                for name in ("SLICE_ID", "NUM_SLICES", "COORDINATOR_ADDRESS")
            ),
        )
        for start in cloud.starts
    }
    assert seen == {("slice-0", "0", "2", "10.0.0.1"), ("slice-1", "1", "2", "10.0.0.1")}
    assert len(cloud.starts) == 4 and "first is done" in said
    assert cloud.left() == NOTHING


@pytest.mark.slow
def test_the_real_training_survives_a_preemption(cloud, text_file, data_cache):
    """flaxlm itself on the one worker: taken away after a checkpoint, it goes on from there."""
    cloud.scenario(preempt=["ls ../runs/first/checkpoints/*00/MANIFEST.json"])
    cloud.configure(LOCK_SECONDS=1, MAX_FAILURES=9)
    keys = ("JAX_PLATFORMS", "XLA_FLAGS", "FLAXLM_CACHE")
    made = runs.environment(data_cache)
    cloud.environment |= {key: made[key] for key in keys} | {"FAKE_REAL": str(ROOT)}
    arguments = runs.arguments(
        text_file, Path("unused"), "--run.steps=2000", "--run.save_every=200"
    )
    arguments = [word for word in arguments if not word.startswith("--run.directory")]
    said = cloud("run.sh", "--delete", "--", *arguments, "--run.eval_every=0", "--run.log_every=1")
    assert "slice is SUSPENDED" in said and "first is done" in said
    assert [line["step"] for line in runs.metrics(cloud.runs / "first")] == [*range(1, 2001)]
    assert len((cloud.runs / "first" / "command.txt").read_text().splitlines()) == 2
    assert cloud.left() == NOTHING


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck():
    files = [*(ROOT / "tpu").glob("*.sh"), ROOT / "tpu/cluster/train.sbatch"]
    files += [ROOT / "tpu/config.env.example", *(TOOLS / "bin").iterdir(), TOOLS / "uv"]
    done = subprocess.run(["shellcheck", "-x", *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_example_configuration_is_complete(cloud):
    shutil.copy(ROOT / "tpu" / "config.env.example", cloud.folder / "config.env")
    assert "--accelerator-type=v5p-8" in cloud("create.sh", "--dry-run")
    cloud.configure(SLICES="two")
    assert "SLICES=two must be a whole number" in cloud("create.sh", code=78)
    cloud.configure(SLICES=2, WORKER_ENV="no assignment")
    assert "'no assignment' is not NAME=VALUE" in cloud("create.sh", code=78)
    (cloud.folder / "config.env").write_text("PROJECT=p")
    assert "ZONE is not set" in cloud("create.sh", code=78)
    (cloud.folder / "config.env").unlink()
    assert "copy tpu/config.env.example" in cloud("create.sh", code=78)


def test_commands_of_the_page(cloud):
    """Every line of docs/pods.md that calls a script, as a dry run."""
    page = (ROOT / "docs" / "pods.md").read_text()
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in re.findall("^tpu/.*", blocks, re.M)]
    assert len(lines) > 8
    for script, *arguments in lines:
        assert "gcloud compute tpus" in cloud(script.removeprefix("tpu/"), "--dry-run", *arguments)
