"""The roll call: who is missing, who differs. Threads on this machine stand in for hosts."""

import json
import socket
import threading
import time

import pytest

from flaxlm import distributed, handshake
from flaxlm.cluster import Cluster
from flaxlm.errors import ConfigError, PeerLost
from flaxlm.experiment import load
from flaxlm.handshake import Caller, difference, facts, roll_call
from tests import runs

ALIKE = {"flaxlm": "1", "run.seed": "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(said, *, count=None, port=None, timeout=20.0, delay=None, hosts=()):
    """{process: what its roll call ended with (None is good)} and what was printed."""
    port, ended, lines = port or free_port(), {}, []

    def one(at, index, values):
        time.sleep((delay or {}).get(at, 0))
        cluster = Cluster("test", f"127.0.0.1:{port}", count or len(said), index, hosts)
        try:
            ended[at] = roll_call(cluster, values, timeout=timeout, say=lines.append)
        except Exception as error:
            ended[at] = error

    entries = list(said.items()) if isinstance(said, dict) else said
    threads = [
        threading.Thread(target=one, args=(at, index, values))
        for at, (index, values) in enumerate(entries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ended, lines


def test_all_are_there_and_the_port_is_free_again(monkeypatch):
    monkeypatch.setattr(handshake, "EVERY", 0.2)
    port = free_port()
    for _ in range(2):  # at once again, as after a restart
        ended, lines = call(dict.fromkeys(range(4), ALIKE), port=port, delay={3: 1.2})
        assert ended == dict.fromkeys(range(4))
        assert "process 0 of 4 waits for process 3" in lines
        socket.create_server(("127.0.0.1", port)).close()


def test_process_0_comes_last(monkeypatch):
    monkeypatch.setattr(handshake, "EVERY", 0.2)
    ended, lines = call(dict.fromkeys(range(2), ALIKE), delay={0: 1.5})
    assert ended == {0: None, 1: None}
    assert any("process 1 waits for process 0 at 127.0.0.1:" in line for line in lines)


def test_the_missing_are_named_to_all():
    hosts = ("a", "b", "c", "d")
    ended, _ = call({0: ALIKE, 2: ALIKE}, count=4, timeout=1.5, hosts=hosts)
    for error in ended.values():
        assert isinstance(error, PeerLost) and error.code == 71
        assert "process 1 (b), 3 (d) of 4 did not come within 2 s" in str(error)


def test_a_missing_process_0_is_named(monkeypatch):
    monkeypatch.setattr(handshake, "_GRACE", 0.5)
    ended, _ = call({1: ALIKE}, count=2, timeout=0.5)
    assert isinstance(ended[0], PeerLost) and "process 0 did not answer" in str(ended[0])


@pytest.mark.faults(21)
def test_a_difference_is_named_to_all(monkeypatch):
    monkeypatch.setattr(handshake, "_GRACE", 1.0)
    ended, _ = call([(0, ALIKE), (1, ALIKE), (2, ALIKE | {"run.seed": "7"})])
    for error in ended.values():
        assert isinstance(error, ConfigError) and error.code == 78
        host = socket.gethostname()
        assert str(error).startswith(f"process 2 ({host}) was started with run.seed 7, ")


def test_one_number_twice_and_another_count(monkeypatch):
    monkeypatch.setattr(handshake, "_GRACE", 0.5)
    ended, _ = call([(0, ALIKE), (1, ALIKE), (1, ALIKE)], count=3, delay={2: 0.5})
    assert all("two processes are number 1" in str(error) for error in ended.values())
    assert len(ended) == 3
    ended, _ = call([(0, ALIKE), (0, ALIKE)], count=2, timeout=3, delay={1: 0.3})
    assert isinstance(ended[1], PeerLost)  # it cannot even listen


def test_strangers_are_hung_up_on():
    port = free_port()

    def stranger():
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[" * 60_000 + b"\n"):
            for _ in range(50):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1) as line:
                        line.sendall(text)
                    break
                except OSError:
                    time.sleep(0.1)

    thread = threading.Thread(target=stranger)
    thread.start()
    ended, _ = call(dict.fromkeys(range(2), ALIKE), port=port, delay={1: 1.0})
    thread.join()
    assert ended == {0: None, 1: None}


def test_a_caller_that_comes_again():
    """It was started anew while the others were still missing."""
    port = free_port()

    def killed():
        time.sleep(0.5)
        hello = {"hello": "flaxlm roll call 1", "index": 1, "count": 3, "host": "x"}
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(json.dumps({**hello, "facts": ALIKE}).encode() + b"\n")

    thread = threading.Thread(target=killed)
    thread.start()
    ended, _ = call(dict.fromkeys(range(3), ALIKE), port=port, delay={1: 1.5, 2: 2.0})
    thread.join()
    assert ended == dict.fromkeys(range(3))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([{"a": "1"}, {"a": "1"}], ""),
        ([{"a": "1"}, {"a": "2"}], "process 1 (h1) was started with a 2, process 0 (h0) with 1:"),
        ([{"a": "9"}, {"a": "2"}, {"a": "2"}], "process 0 (h0) was started with a 9, 2 others "),
        ([{"a": "1"}, {"a": "1", "b": "2"}], "process 1 (h1) was started with b 2, "),
    ],
)
def test_difference(values, text):
    found = difference({i: Caller(f"h{i}", entry) for i, entry in enumerate(values)})
    assert found.startswith(text) and bool(found) == bool(text)


def test_facts_are_all_that_must_be_equal(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--x")
    found = facts(load(runs.TINY).experiment)
    assert found["XLA_FLAGS"] == "--x" and found["run.seed"] == "0" and "jaxlib" in found
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FLAXLM_DISTRIBUTED": "no"}, "expected auto, off or jax"),
        ({"FLAXLM_START_TIMEOUT": "soon"}, "expected a whole number"),
    ],
)
def test_switches_that_make_no_sense(monkeypatch, environ, message):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.initialize()


def test_off_joins_nothing(monkeypatch):
    monkeypatch.setenv("FLAXLM_DISTRIBUTED", "off")
    monkeypatch.setenv("FLAXLM_COORDINATOR", "10.0.0.1:9000")
    assert distributed.initialize() is False
