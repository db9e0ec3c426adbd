"""Joining the processes of a run, and leaving when one of them is lost. The one place that asks
JAX which process this is before the mesh is made.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax

from flaxlm import handshake
from flaxlm.cluster import Cluster, detect
from flaxlm.errors import ConfigError
from flaxlm.watchdog import abandon

HEARTBEAT = 60  # seconds after which jax ends the others when a process has died

# How jax and its collectives word that another process is gone.
_LOST = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|gloo|connection|heartbeat|coordination"
    "|peer|socket",
    re.IGNORECASE,
)


def initialize(facts: Mapping[str, str] | None = None) -> bool:
    """Join the other processes of this run if there are any; call it before anything touches a
    device.

    FLAXLM_DISTRIBUTED: "auto" (default) joins what `cluster.detect` finds; "off" never joins; "jax"
    leaves all to `jax.distributed.initialize`, which knows mpi4py and the Kubernetes API.
    FLAXLM_START_TIMEOUT: seconds to wait for the others, 300 by default.

    Args:
      facts: {name: value} that must be equal in all processes (`handshake.facts`).

    Returns:
      Whether `jax.distributed` now runs.

    Raises:
      ConfigError: the environment contradicts itself, or the facts differ.
      PeerLost: naming the processes that did not come.
    """
    if jax.distributed.is_initialized():
        return True
    mode, timeout = _mode(os.environ), _timeout(os.environ)
    if mode == "off":
        return False
    if mode == "jax":
        jax.distributed.initialize(
            initialization_timeout=timeout, heartbeat_timeout_seconds=HEARTBEAT
        )
        handshake.agree(facts or {})
        _say(Cluster("jax", "its coordinator", jax.process_count(), jax.process_index()))
        return True
    cluster = detect(os.environ)
    if cluster is None:
        return False
    handshake.roll_call(cluster, facts or {}, timeout=timeout)
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.count,
        process_id=cluster.index,
        local_device_ids=None if cluster.device is None else [cluster.device],
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    _say(cluster)
    return True


@contextmanager
def ending_with_peers(last: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End this process with 71 when the block fails because another process of the run is gone.

    At once: on the way out, every collective would wait for the one that is gone.

    Args:
      last: called before the end.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if not jax.distributed.is_initialized() or not _LOST.search(text):
            raise
        abandon(f"another process of the run is gone: {text[:300]}", last=last)


def _say(cluster: Cluster) -> None:
    if cluster.index == 0:
        print(f"{cluster.name}: {cluster.count} processes at {cluster.coordinator}", flush=True)


def _mode(environ: Mapping[str, str]) -> str:
    mode = environ.get("FLAXLM_DISTRIBUTED") or "auto"
    if mode not in ("auto", "off", "jax"):
        raise ConfigError(f"FLAXLM_DISTRIBUTED={mode}: expected auto, off or jax")
    return mode


def _timeout(environ: Mapping[str, str]) -> int:
    text = environ.get("FLAXLM_START_TIMEOUT") or "300"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"FLAXLM_START_TIMEOUT={text}: expected a whole number of seconds")
    return int(text)
