"""A fake cloud for tests: a repository with the scripts of tpu/, a configuration, and the machines
of fake_cloud/ that they talk to.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tests" / "fake_cloud"
CONFIG = """
PROJECT=p ZONE=z NAME=slice ACCELERATOR_TYPE=v5p-16 RUNTIME_VERSION=v2-alpha-tpuv5 SPOT=yes
VALID_UNTIL=24h SLICES=1 CREATE_FLAGS=() SSH_FLAGS=() RUNS_BUCKET=bucket RUNS_NFS= RUN=first
REF=HEAD PYTHON_VERSION=3.12 UV_VERSION=0.13.8 WORKER_ENV=("EXTRA=a b")
GRACE_SECONDS=10 POLL_SECONDS=0.1 RETRY_SECONDS=0 RETRIES=3 BACKOFF_SECONDS=0 MAX_FAILURES=3
HEALTHY_SECONDS=600 PEER_SECONDS=2 LOCK_SECONDS=0
"""

NOTHING = {"queues": [], "nodes": [], "homes": [], "processes": []}  # what `left` should be

needs_linux = pytest.mark.skipif(
    not (Path("/proc/self/stat").exists() and shutil.which("git") and shutil.which("setsid")),
    reason="needs Linux, git and setsid",
)


class FakeCloud:
    """A repository with the scripts, a configuration, and the fake cloud they talk to."""

    def __init__(self, folder: Path, **scenario):
        self.folder, self.cloud, self.runs = folder, folder / "cloud", folder / "runs"
        self.repository = folder / "repository"
        for path in (self.cloud, self.runs, folder / "bin"):
            path.mkdir()
        shutil.copytree(ROOT / "tpu", self.repository / "tpu")
        for tool in (TOOLS / "bin").iterdir():
            (folder / "bin" / tool.name).write_bytes(tool.read_bytes())
            (folder / "bin" / tool.name).chmod(0o755)
        (folder / "config.env").write_text(CONFIG + f"RUNS_DIR={self.runs}\n")
        self.scenario(**scenario)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder),
            "FAKE_CLOUD": str(self.cloud), "FAKE_TOOLS": str(TOOLS), "FAKE_PYTHON": sys.executable,
            "FLAXLM_TPU_CONFIG": str(folder / "config.env"), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(self.repository)]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)

    def scenario(self, **scenario):
        (self.cloud / "scenario.json").write_text(json.dumps(scenario))

    def configure(self, **values):
        with open(self.folder / "config.env", "a") as file:
            file.writelines(f"{name}={shlex.quote(str(text))}\n" for name, text in values.items())

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.repository / "tpu" / script), *arguments], cwd=self.folder,
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __call__(self, script: str, *arguments: str, code: int = 0) -> str:
        process = self.start(script, *arguments)
        try:
            said, _ = process.communicate(timeout=240)  # of a machine that has other work
        finally:
            process.kill()
        assert process.returncode == code, f"{script} ended with {process.returncode}:\n{said}"
        return said

    def calls(self, *words: str) -> list[list[str]]:
        file = self.cloud / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [call for line in lines if set(words) <= set(call := json.loads(line))]

    @property
    def starts(self) -> list[dict]:
        file = self.cloud / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def left(self) -> dict:
        """What exists: queued resources, nodes, homes of machines, processes on them."""
        state = json.loads((self.cloud / "state.json").read_text())
        machines = self.cloud / "machines"
        return {
            "queues": list(state["queues"]), "nodes": list(state["nodes"]),
            "homes": [path.name for path in machines.iterdir()] if machines.exists() else [],
            "processes": self.processes(),
        }  # fmt: skip

    def processes(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "environ").read_bytes()
                if f"FAKE_MACHINE={self.cloud}".encode() in text:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def wait_for(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    def wait_until_active(self):
        self.wait_for(lambda: "slice ACTIVE" in self("status.sh"))
