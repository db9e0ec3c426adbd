"""A stand-in for `python -m flaxlm.train`: counts steps into its run directory, saves on SIGTERM.

What each start does is read from $FAKE_CLOUD/scenario.json: "train" lists, per start of a worker,
{"exit": code} or {"steps": n} or {"holds": n}, which counts to n and then waits until it is ended;
without an entry it counts to 12.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

cloud, host = Path(os.environ["FAKE_CLOUD"]), os.environ["FAKE_HOST"]
(directory,) = (
    Path(word.partition("=")[2]) for word in sys.argv if word.startswith("--run.directory=")
)
directory.mkdir(parents=True, exist_ok=True)
counter = directory / "step"
first = host.endswith("-w0") and "-1-w" not in host  # process 0 of the run: it alone writes
step = int(counter.read_text()) if counter.exists() else 0
names = ("JAX_", "MEGASCALE_", "FLAXLM_", "EXTRA")
started = {
    "host": host, "argv": sys.argv[1:], "step": step, "cwd": os.getcwd(), "pid": os.getpid(),
    "env": {key: value for key, value in os.environ.items() if key.startswith(names)},
}  # fmt: skip
with open(cloud / "starts.jsonl", "a") as file:
    file.write(json.dumps(started) + "\n")
earlier = [json.loads(line) for line in (cloud / "starts.jsonl").read_text().splitlines()]
number = sum(start["host"] == host for start in earlier) - 1
scripted = json.loads((cloud / "scenario.json").read_text()).get("train", [])
todo = scripted[number] if number < len(scripted) else {}
if isinstance(todo, list):  # one entry per worker
    todo = todo[int(host.rpartition("-w")[2])]
stop = []
if "deaf" in todo:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
print(f"{host}: from step {step}", flush=True)
if "exit" in todo:
    print(f"flaxlm: said for exit {todo['exit']}", file=sys.stderr)
    if todo["exit"] == 134:
        os.abort()
    sys.exit(todo["exit"])
while "holds" in todo or step < todo.get("steps", 12):
    time.sleep(0.05)
    if stop:
        sys.exit(75)
    if first and step < todo.get("holds", math.inf):
        step += 1
        draft = counter.with_suffix(".new")
        draft.write_text(str(step))
        draft.rename(counter)
    elif counter.exists():
        step = int(counter.read_text())
print(f"{host}: done at step {step}", flush=True)
