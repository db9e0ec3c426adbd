"""What lies in tpu/ beside the scripts: the templates of tpu/cluster, the image, the pins."""

import shutil
import tomllib

import pytest

from tests.pods import ROOT, TOOLS, FakeCloud, needs_linux


@pytest.fixture
def cloud(tmp_path):
    with FakeCloud(tmp_path) as made:
        yield made


def test_the_constraints_fit_the_project():
    """Every dependency is pinned, within the bounds of pyproject.toml."""
    requirements = pytest.importorskip("packaging.requirements")
    pins = {}
    for line in (ROOT / "tpu" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[name.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["tpu"]):
        requirement = requirements.Requirement(text)
        pinned = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pinned), f"{text}: {pinned}"
    assert {"jaxlib", "libtpu"} <= set(pins)


def test_the_image_copies_what_there_is():
    lines = (ROOT / "tpu" / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    kept = (ROOT / "tpu" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in sources} <= set(kept)
    assert "USER flaxlm" in lines  # not root


def test_the_templates_are_yaml():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((ROOT / "tpu/cluster/jobset.yaml").read_text())["spec"]
    (rule,) = jobset["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    (failure,) = job["podFailurePolicy"]["rules"]
    useless = failure["onExitCodes"]["values"]
    pod = job["template"]["spec"]
    assert failure["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    sky = yaml.safe_load((ROOT / "tpu/cluster/sky.yaml").read_text())
    again = sky["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert again == [71, 75, 134] and not set(again) & set(useless)
    # The same codes end the run in every launcher.
    pattern = " | ".join(map(str, useless)) + ")"
    assert pattern in (ROOT / "tpu" / "run.sh").read_text()
    assert pattern in (ROOT / "tpu/cluster/train.sbatch").read_text()


SRUN = """#!/bin/bash
# One process per task, here; the highest code of all, as srun has it.
while [[ $1 == --* ]]; do shift; done
worst=0 pids=()
for ((task = 0; task < 2; task++)); do
  FAKE_HOST=node-w$task SLURM_PROCID=$task "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || { code=$?; ((code > worst)) && worst=$code; }; done
exit $worst
"""


@needs_linux
@pytest.mark.parametrize(
    ("ends", "code", "requeued"),
    [((0, 0), 0, False), ((75, 75), 75, True), ((78, 134), 78, False), ((134, 71), 134, True)],
)
def test_slurm_requeues_what_may_pass(ends, code, requeued, cloud):
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/sh\necho "$@" >requeued\n'}.items():
        (cloud.folder / "bin" / name).write_text(text)
        (cloud.folder / "bin" / name).chmod(0o755)
    cloud.scenario(train=[[{"exit": end} for end in ends]])
    shutil.copy(TOOLS / "python", cloud.folder / "bin" / "python-of-run")
    (cloud.folder / "bin" / "python-of-run").chmod(0o755)
    cloud.environment |= {"SLURM_JOB_ID": "7", "PYTHON": "python-of-run"}
    script = "cluster/train.sbatch"
    assert "give --run.directory" in cloud(script, "--experiment", "x", code=78)
    cloud(script, "--experiment", "a b", f"--run.directory={cloud.runs}/x", code=code)
    assert all("a b" in start["argv"] for start in cloud.starts) and len(cloud.starts) == 2
    assert (cloud.folder / "requeued").exists() is requeued
    cloud.environment["SLURM_RESTART_COUNT"] = "100"  # and no further
    (cloud.folder / "requeued").unlink(missing_ok=True)
    cloud(script, "--experiment", "x", f"--run.directory={cloud.runs}/x", code=0)
    assert not (cloud.folder / "requeued").exists()
