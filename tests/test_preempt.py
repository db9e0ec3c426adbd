"""Signals: one at the step boundary, two at once, none of ours left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flaxlm.preempt import Stopped, StopSignal

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def interrupts():
    """SIGINT interrupts, though a shell that starts pytest in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
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


def test_what_waits_is_taken_out():
    with StopSignal() as stop:
        with stop.interrupting():
            pass
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped, match="SIGTERM"), stop.interrupting():
            threading.Event().wait(30)
        assert stop.reached(1) == "SIGTERM"
        with pytest.raises(Stopped), stop.interrupting():
            raise AssertionError("it had come before")
        with pytest.raises(Stopped):
            stop.check()


def test_a_checkpoint_that_is_asked_for():
    with StopSignal() as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 10
        while not stop.asked(2):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not stop.asked(3) and stop.reached(3) == ""


BUSY = """
import hashlib
from flaxlm.preempt import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    # As in a compilation: the main thread is minutes away from running a Python handler.
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""


@pytest.mark.faults(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_busy_process(number, fault_row):
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
        fault_row(
            injected=f"{number.name} twice, during a long compilation",
            happened="the second one ends the process at once",
            exit_code=128 + number,
            lost="what came after the last checkpoint",
        )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
