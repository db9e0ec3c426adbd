"""Signals: one at the step boundary, two at once, none of ours left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flaxlm.preempt import StopSignal

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_answered_at_the_boundary(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        assert stop.reached(1) == ""
        os.kill(os.getpid(), number)
        end = time.monotonic() + 10
        while not (name := stop.reached(2)):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert name == number.name
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_nothing_is_installed_outside_the_main_thread():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignal() as stop:
            found.extend([stop.reached(1), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["", before]


BUSY = """
import hashlib
from flaxlm.preempt import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    # As in a compilation: the main thread is minutes away from running a Python handler.
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_busy_process(number):
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(number)
        assert child.wait(timeout=10) == 128 + number
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
