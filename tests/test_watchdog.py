"""The watchdog: what it allows, and how a process that hangs ends."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flaxlm.goodput import Ledger
from flaxlm.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_allowed(tmp_path):
    ledger = Ledger()
    watchdog = Watchdog(ledger, patience=100, directory=tmp_path)
    assert watchdog.limit() == 1500  # the start
    ledger.begin()
    assert watchdog.limit() == 100
    ledger.recent.extend([1.0, 2.0, 90.0])
    assert watchdog.limit() == 100
    ledger.recent.extend([20.0, 20.0, 20.0])
    assert watchdog.limit() == 200
    with ledger.during("data"):
        assert watchdog.limit() == 200
    for use in ("compile", "eval", "save"):
        with ledger.during(use):
            assert watchdog.limit() == 1500


def test_no_patience_watches_nothing(tmp_path):
    with Watchdog(Ledger(), patience=0, directory=tmp_path):
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]


HANGS = """
import sys, threading, time
from pathlib import Path
from flaxlm.goodput import Ledger
from flaxlm.watchdog import Watchdog

ledger = Ledger()

def where_it_hangs():
    threading.Event().wait()

with Watchdog(ledger, patience=0.4, directory=Path(sys.argv[1]), process=3,
              last=lambda: (print("last"), time.sleep(float(sys.argv[2])))):
    with ledger.during("eval"):
        time.sleep(1.5)  # longer than the patience: allowed here
    ledger.begin()
    for _ in range(6):
        time.sleep(0.1)
        ledger.stepped()
    print("hangs", flush=True)
    where_it_hangs()
"""


@pytest.mark.faults(20)
@pytest.mark.parametrize("last", ["0", "60"])
def test_a_hang_ends_with_stacks_and_71(tmp_path, last, fault_row):
    source = HANGS.replace("ledger = Ledger()", "import flaxlm.watchdog\n"
                           "flaxlm.watchdog._FAREWELL = 1.0\nledger = Ledger()")  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path), last],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 71, done.stderr
    assert time.monotonic() - began < 40
    assert done.stdout.splitlines()[0] == "hangs"
    file = tmp_path / "stacks-3.txt"
    for text in (file.read_text(), done.stderr):
        assert "where_it_hangs" in text and "process 3 on " in text and "during steps" in text
    assert done.stderr.rstrip().endswith(f"its stacks are in {file}")
    if last == "60":
        fault_row(
            injected="the main thread waits for ever, and so does what is done last",
            happened="the watchdog writes the stacks of all threads and ends the process, ten "
            "seconds later at most",
            exit_code=71,
            lost="the steps since the last save",
        )
