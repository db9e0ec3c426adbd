"""Before the processes of a run compute together: are they all there, and were they all started
alike?

The roll call needs nothing but a socket: process 0 listens at the coordinator's own port, before
`jax.distributed` does, and every process tells it who and where it is and what it was started with.
A missing one is named every ten seconds and at the end; one that differs, at once. What is known
only later, such as the vocabulary, is compared by `agree`, through jax.
"""

import json
import os
import platform
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxlm import __version__
from flaxlm.cluster import Cluster
from flaxlm.errors import ConfigError, PeerLost, UserError
from flaxlm.overrides import flatten, to_json

EVERY = 10.0  # seconds between two lines about who is missing
_GRACE = 10.0  # seconds that the rest has to come, once a difference was found
_SILENCE = 5.0  # seconds after which a caller that says nothing is hung up on
_PATIENCE = 60.0  # seconds that a run before may hold the port
_LONGEST = 1 << 22  # bytes of what one process says
_HELLO = "flaxlm roll call 1"
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # they change the programs


@dataclass(frozen=True)
class Caller:
    """A process as it answers the roll call: where it runs, and what it was started with."""

    host: str
    facts: Mapping[str, str]


def facts(experiment) -> dict[str, str]:
    """{name: value} of what has to be equal in all processes: versions, flags of the compiler and
    every field of the experiment.
    """
    described = flatten(to_json(experiment))
    return {
        "flaxlm": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")},
        **{name: os.environ.get(name) or "unset" for name in _FLAGS},
        **{path: json.dumps(value) for path, value in described.items()},
    }


def roll_call(
    cluster: Cluster,
    facts: Mapping[str, str],
    *,
    timeout: float,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> None:
    """Wait until every process of the cluster is there; all of them call it.

    Args:
      timeout: seconds.
      say: takes a line every ten seconds while somebody is missing.

    Raises:
      PeerLost: naming who did not come.
      ConfigError: two processes differ, with the field and both values; or they are not of one run.
    """
    if cluster.index == 0:
        _lead(cluster, Caller(socket.gethostname(), facts), timeout, say)
    else:
        _follow(cluster, Caller(socket.gethostname(), facts), timeout, say)


def agree(facts: Mapping[str, str]) -> None:
    """Check that every process has the same facts. Collective, through jax; plain words alone.

    Raises:
      ConfigError: naming the process, the fact and both values, in all processes.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    own = json.dumps([socket.gethostname(), dict(facts)]).encode()
    sizes = multihost_utils.process_allgather(np.array(len(own), np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    said = [json.loads(row.astype(np.uint8).tobytes().rstrip(b"\0")) for row in rows]
    if found := difference({index: Caller(*entry) for index, entry in enumerate(said)}):
        raise ConfigError(found)


def difference(callers: Mapping[int, Caller]) -> str:
    """One line about the first fact that not all have; "" if there is none.

    Args:
      callers: {process: what it says}, two or more.
    """
    names = dict.fromkeys(name for caller in callers.values() for name in caller.facts)
    for name in names:
        values = {
            index: caller.facts[name] if name in caller.facts else "(absent)"
            for index, caller in sorted(callers.items())
        }
        (usual, times), *others = Counter(values.values()).most_common()
        if not others:
            continue
        odd = next(index for index, value in values.items() if value != usual)
        peer = next(index for index, value in values.items() if value == usual)
        whose = f"process {peer} ({callers[peer].host})" if times == 1 else f"{times} others"
        return (
            f"process {odd} ({callers[odd].host}) was started with {name} {values[odd]}, "
            f"{whose} with {usual}: start all processes alike"
        )
    return ""


def _lead(cluster: Cluster, own: Caller, timeout: float, say) -> None:
    """Process 0: collect the answers, then tell everybody how it went."""
    spoken = time.monotonic()
    deadline = spoken + timeout
    callers = {0: own}
    lines: dict[int, socket.socket] = {}  # to the callers
    rest: list[socket.socket] = []  # to those who are told only that it went wrong
    error: UserError | None = None
    with _listen(cluster, timeout) as listener:
        while len(callers) < cluster.count and time.monotonic() < deadline:
            now = time.monotonic()
            if now - spoken > EVERY:
                say(f"process 0 of {cluster.count} waits for {_missing(cluster, callers)}")
                spoken = now
            found = _answer(listener)
            if found is None:
                continue
            line, index, count, caller = found
            problem = _contradiction(cluster, callers, lines, index, count, caller)
            if problem:
                rest.append(line)
            else:
                if index in lines:
                    lines[index].close()  # it hung up and came again
                callers[index], lines[index] = caller, line
                problem = difference(callers)
            if problem and error is None:
                error, deadline = ConfigError(problem), min(deadline, time.monotonic() + _GRACE)
    if error is None and len(callers) < cluster.count:
        error = PeerLost(
            f"{_missing(cluster, callers)} of {cluster.count} did not come within {timeout:.0f} s "
            f"to {cluster.coordinator}: look there for an error, or whether the port is closed to "
            "them (FLAXLM_START_TIMEOUT sets the seconds)"
        )
    answer = {"code": type(error).code, "message": str(error)} if error else {"code": 0}
    everybody = [*lines.values(), *rest]
    for line in everybody:
        _tell(line, answer)
    for line in everybody:  # they close first, so the port is free for jax
        _hung_up(line, wait=True)
        line.close()
    if error is not None:
        raise error


def _contradiction(cluster: Cluster, callers, lines, index: int, count: int, caller) -> str:
    if count != cluster.count:
        return (
            f"process {index} ({caller.host}) was started as one of {count}, process 0 "
            f"({callers[0].host}) as one of {cluster.count}: start all processes alike"
        )
    if index == 0 or (index in callers and not _hung_up(lines[index])):
        return (
            f"two processes are number {index}: on {callers[index].host} and on {caller.host}; "
            "give each its own number"
        )
    return ""


def _follow(cluster: Cluster, own: Caller, timeout: float, say) -> None:
    """The others: find process 0, say who they are, and wait for its word."""
    host, _, port = cluster.coordinator.rpartition(":")
    hello = {"hello": _HELLO, "index": cluster.index, "count": cluster.count, "host": own.host}
    hello = json.dumps({**hello, "facts": dict(own.facts)}).encode() + b"\n"
    start = spoken = time.monotonic()
    # Process 0 is asked a little longer than it waits itself: it knows who is missing.
    while (now := time.monotonic()) < start + timeout + _GRACE:
        if now - spoken > EVERY:
            say(f"process {cluster.index} waits for process 0 at {cluster.coordinator}")
            spoken = now
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as line:
                line.settimeout(start + timeout + _GRACE - now)
                line.sendall(hello)
                answer = _parse(_read(line))
        except OSError:  # not there yet, or gone again
            answer = None
        if answer is None:
            time.sleep(0.5)
        elif answer["code"]:
            kinds = [UserError, *UserError.__subclasses__()]
            raise next(k for k in kinds if k.code == answer["code"])(answer["message"])
        else:
            return
    raise PeerLost(
        f"process {cluster.index} ({own.host}): process 0 did not answer at {cluster.coordinator} "
        f"within {timeout:.0f} s: look there for an error, or whether the port is closed "
        "(FLAXLM_START_TIMEOUT sets the seconds)"
    )


def _listen(cluster: Cluster, timeout: float) -> socket.socket:
    host, _, port = cluster.coordinator.rpartition(":")
    local = host in ("127.0.0.1", "localhost")
    dual = not local and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    deadline = time.monotonic() + min(timeout, _PATIENCE)
    while True:
        try:
            address = (host if local else "", int(port))
            return socket.create_server(address, family=family, backlog=512, dualstack_ipv6=dual)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"port {port} of {socket.gethostname()} cannot be used: {error.strerror}; "
                    "end what holds it, or choose another (JAX_COORDINATOR_PORT, "
                    "FLAXLM_COORDINATOR)"
                ) from None
            time.sleep(1)  # perhaps the run before, which is ending


def _answer(listener: socket.socket):
    """(line, index, count, Caller) of the next process that calls, None if none does for a moment,
    or if it was a stranger.
    """
    listener.settimeout(0.5)
    try:
        line, _ = listener.accept()
    except OSError:
        return None
    line.settimeout(_SILENCE)
    try:
        said = _parse(_read(line))
    except OSError:
        said = None
    if said is None or "hello" not in said or said["hello"] != _HELLO:
        line.close()
        return None
    return line, said["index"], said["count"], Caller(said["host"], said["facts"])


def _read(line: socket.socket) -> bytes:
    """One line of bytes; OSError if it does not end."""
    parts, size = [], 0
    while not parts or not parts[-1].endswith(b"\n"):
        part = line.recv(1 << 16)
        size += len(part)
        if not part or size > _LONGEST:
            raise OSError("the line was cut")
        parts.append(part)
    return b"".join(parts)


def _parse(raw: bytes) -> dict | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # nothing that a stranger sends
        return None
    return value if isinstance(value, dict) else None


def _tell(line: socket.socket, answer: dict) -> None:
    try:
        line.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        pass  # it is gone


def _hung_up(line: socket.socket, *, wait: bool = False) -> bool:
    line.settimeout(2.0 if wait else 0.0)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _missing(cluster: Cluster, callers) -> str:
    numbers = [index for index in range(cluster.count) if index not in callers]
    names = [f"{i} ({cluster.hosts[i]})" if cluster.hosts else str(i) for i in numbers]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"process {', '.join(names[:20])}{more}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
