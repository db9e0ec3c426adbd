"""A fake `gcloud compute tpus`: queued resources that wait, become active and are preempted, nodes
whose workers are folders, ssh that runs the command here. Refuses flags that the real one lacks.

$FAKE_CLOUD holds calls.jsonl (every call), state.json, machines/ (a home per worker), and
scenario.json:
  workers  of a node (default 1)
  preempt  one entry per time the slice is created: a shell condition, checked whenever gcloud is
           called, that takes the slice away, or null
  states   the same: the states before ACTIVE, one per look
  faults   [{"match": regex, "times": n, "error": text, "code": c}]: calls that fail; an ssh is
           matched per worker, as `ssh NODE worker=K COMMAND`
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
COMMON = {"--project", "--zone", "--quiet"}
SSH = {"--worker", "--internal-ip", "--ssh-flag", "--batch-size", "--strict-host-key-checking"}
# What `gcloud compute tpus GROUP COMMAND` takes: required flags, and further ones.
FLAGS = {
    ("queued-resources", "create"): (
        {"--accelerator-type", "--runtime-version"},
        {
            "--node-id", "--node-count", "--node-prefix", "--spot", "--valid-until-duration",
            "--reserved", "--service-account", "--network", "--labels", "--metadata",
        },
    ),
    ("queued-resources", "describe"): ({"--format"}, set()),
    ("queued-resources", "delete"): (set(), {"--force", "--async"}),
    ("tpu-vm", "describe"): ({"--format"}, {"--flatten"}),
    ("tpu-vm", "delete"): (set(), {"--async"}),
    ("tpu-vm", "ssh"): ({"--command"}, SSH),
    ("tpu-vm", "scp"): (set(), SSH | {"--recurse", "--compress"}),
}  # fmt: skip


class Failure(Exception):
    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def not_found(kind: str, name: str) -> Failure:
    return Failure(
        f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource "
        f"'projects/p/locations/z/{kind}/{name}' was not found"
    )


def parse(argv: list[str]):
    if argv[:2] != ["compute", "tpus"] or len(argv) < 5:
        raise Failure(f"ERROR: (gcloud) Invalid choice: {argv}", 2)
    group, command, *words = argv[2:]
    if (group, command) not in FLAGS:
        raise Failure(f"ERROR: (gcloud.compute.tpus) Invalid choice: '{group} {command}'.", 2)
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    required, further = FLAGS[group, command]
    wrong = set(flags) - required - further - COMMON
    if wrong or not required | {"--project", "--zone"} <= set(flags):
        raise Failure(f"ERROR: (gcloud) unrecognized arguments or missing: {wrong or required}", 2)
    return group, command, [word for word in words if not word.startswith("--")], flags


class Cloud:
    def __init__(self):
        self.scenario = json.loads((CLOUD / "scenario.json").read_text())
        self.file = CLOUD / "state.json"
        self.lock = open(CLOUD / "lock", "a")

    def __enter__(self):
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        empty = {"created": 0, "queues": {}, "nodes": {}, "faults": {}}
        self.state = json.loads(self.file.read_text()) if self.file.exists() else empty
        return self

    def __exit__(self, *exception):
        self.file.write_text(json.dumps(self.state))
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def fault(self, text: str) -> Failure | None:
        for number, fault in enumerate(self.scenario.get("faults", [])):
            used = self.state["faults"].get(str(number), 0)
            if re.search(fault["match"], text) and used < fault["times"]:
                self.state["faults"][str(number)] = used + 1
                return Failure(fault.get("error", "ERROR: fault"), fault.get("code", 1))
        return None

    def advance(self):
        """Preempt what the scenario takes away now."""
        for queue in self.state["queues"].values():
            conditions = self.scenario.get("preempt", [])
            condition = conditions[queue["number"]] if queue["number"] < len(conditions) else None
            if queue["state"] == "ACTIVE" and condition:
                if subprocess.run(condition, shell=True, cwd=CLOUD).returncode == 0:
                    queue["state"] = "SUSPENDED"
                    for node in queue["nodes"]:
                        self.state["nodes"][node]["state"] = "PREEMPTED"
                        self.end_machines(node)

    def end_machines(self, node: str):
        for worker in range(self.state["nodes"][node]["workers"]):
            home = self.home(node, worker)
            kill_all(f"FAKE_MACHINE={home}")
            shutil.rmtree(home, ignore_errors=True)

    def home(self, node: str, worker: int) -> Path:
        return CLOUD / "machines" / f"{node}.{self.state['nodes'][node]['number']}-w{worker}"

    def create(self, name, flags):
        if name in self.state["queues"]:
            raise Failure(f"ERROR: (gcloud) ALREADY_EXISTS: '{name}'")
        if ("--node-id" in flags) == ("--node-count" in flags):
            raise Failure("ERROR: (gcloud) Exactly one of (--node-id | --node-count)", 2)
        if "--node-id" in flags:
            nodes = [flags["--node-id"]]
        else:
            prefix = flags.get("--node-prefix", name)
            nodes = [f"{prefix}-{number}" for number in range(int(flags["--node-count"]))]
        number = self.state["created"]
        scripted = self.scenario.get("states", [])
        ahead = [*scripted[number]] if number < len(scripted) else ["WAITING_FOR_RESOURCES"]
        self.state["queues"][name] = {
            "number": number, "nodes": nodes, "state": ahead[0], "ahead": [*ahead[1:], "ACTIVE"],
        }  # fmt: skip
        self.state["created"] += 1

    def describe_queue(self, name, flags):
        if name not in self.state["queues"]:
            raise not_found("queuedResources", name)
        if flags["--format"] != "value(state.state)":
            raise Failure(f"ERROR: format {flags['--format']} is not faked", 2)
        queue = self.state["queues"][name]
        print(queue["state"])
        if queue["ahead"] and queue["state"] not in ("FAILED", "SUSPENDED"):
            queue["state"] = queue["ahead"].pop(0)
            if queue["state"] == "ACTIVE":
                for node in queue["nodes"]:
                    self.state["nodes"][node] = {
                        "state": "READY", "number": queue["number"],
                        "workers": self.scenario.get("workers", 1),
                    }  # fmt: skip
                    for worker in range(self.state["nodes"][node]["workers"]):
                        self.home(node, worker).mkdir(parents=True)

    def delete_queue(self, name, flags):
        if name not in self.state["queues"]:
            raise not_found("queuedResources", name)
        queue = self.state["queues"][name]
        nodes = [node for node in queue["nodes"] if node in self.state["nodes"]]
        if nodes and "--force" not in flags:
            raise Failure("ERROR: (gcloud) FAILED_PRECONDITION: it has nodes; use --force")
        if not self.scenario.get("leaks"):  # a cloud that forgets the nodes
            for node in nodes:
                self.delete_node(node)
        del self.state["queues"][name]

    def node(self, name):
        if name not in self.state["nodes"]:
            raise not_found("nodes", name)
        return self.state["nodes"][name]

    def describe_node(self, name, flags):
        node = self.node(name)
        if flags["--format"] == "value(state)":
            print(node["state"])
        elif "--flatten" in flags:
            print("\n".join(f"10.0.0.{worker + 1}" for worker in range(node["workers"])))
        else:
            raise Failure(f"ERROR: format {flags['--format']} is not faked", 2)

    def delete_node(self, name):
        self.node(name)
        self.end_machines(name)
        del self.state["nodes"][name]


def kill_all(marker: str):
    """End every process that has `marker` in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            pass


def reach(cloud: Cloud, name: str, flags: dict, what: str, action) -> int:
    """Do `action(home, environment)` on the workers that --worker names."""
    with cloud:
        cloud.advance()
        node = cloud.node(name)
        if node["state"] != "READY":
            raise Failure(f"ERROR: (gcloud) {name} is {node['state']}, ssh failed", 255)
        chosen = flags.get("--worker", "0")
        workers = range(node["workers"]) if chosen == "all" else [int(chosen)]
        jobs = []
        for worker in workers:
            text = f"{what} {name} worker={worker} {flags}"
            jobs.append((worker, cloud.home(name, worker), cloud.fault(text)))
    codes = []
    for worker, home, fault in jobs:
        if fault:
            print(fault, file=sys.stderr)
            codes.append(fault.code)
            continue
        environment = {
            **os.environ, "HOME": str(home), "FAKE_HOST": f"{name}-w{worker}",
            "FAKE_MACHINE": str(home),
        }  # fmt: skip
        codes.append(action(home, environment))
    return max(codes)


def main(argv: list[str]) -> int:
    with open(CLOUD / "calls.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\n")
    cloud = Cloud()
    try:
        group, command, words, flags = parse(argv)
        if command == "ssh":

            def run(home, env):
                line = ["bash", "-c", flags["--command"]]
                return subprocess.run(line, cwd=home, env=env, stdin=subprocess.DEVNULL).returncode

            return reach(cloud, words[0], flags, "ssh", run)
        if command == "scp":
            source, target = words
            name, _, path = target.partition(":")

            def copy(home, env):
                shutil.copy(source, home / path)
                return 0

            return reach(cloud, name, flags, "scp", copy)
        with cloud:
            cloud.advance()
            if failure := cloud.fault(" ".join(argv)):
                raise failure
            action = {
                ("queued-resources", "create"): cloud.create,
                ("queued-resources", "describe"): cloud.describe_queue,
                ("queued-resources", "delete"): cloud.delete_queue,
                ("tpu-vm", "describe"): cloud.describe_node,
                ("tpu-vm", "delete"): lambda name, flags: cloud.delete_node(name),
            }[group, command]
            action(words[0], flags)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
