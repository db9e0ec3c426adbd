"""Joining the processes of a run. The one place that asks JAX which process this is before the
mesh is made.
"""

import os

import jax

from flaxlm.errors import ConfigError

_TRIPLE = ("FLAXLM_COORDINATOR", "FLAXLM_NUM_PROCESSES", "FLAXLM_PROCESS_ID")


def initialize(timeout: int = 300) -> bool:
    """Join the other processes of this run if there are any; call it before anything touches a
    device.

    Explicit addresses win: FLAXLM_COORDINATOR=host:port, FLAXLM_NUM_PROCESSES, FLAXLM_PROCESS_ID.
    FLAXLM_DISTRIBUTED=auto lets JAX detect a TPU pod, Slurm or Open MPI. Without either, this is a
    run of one process.

    Args:
      timeout: seconds to wait for the others.

    Returns:
      Whether `jax.distributed` now runs.
    """
    given = [name for name in _TRIPLE if name in os.environ]
    if not given and os.environ.get("FLAXLM_DISTRIBUTED") != "auto":
        return False
    if jax.distributed.is_initialized():
        return True
    if not given:
        jax.distributed.initialize(initialization_timeout=timeout)
        return True
    if len(given) != len(_TRIPLE):
        missing = ", ".join(name for name in _TRIPLE if name not in given)
        raise ConfigError(
            f"{', '.join(given)} set but not {missing}: a run of many processes needs all three"
        )
    count, index = (os.environ[name] for name in _TRIPLE[1:])
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            f"FLAXLM_PROCESS_ID={index} of FLAXLM_NUM_PROCESSES={count}: ids are whole numbers "
            f"from 0 to the count - 1"
        )
    jax.distributed.initialize(
        coordinator_address=os.environ[_TRIPLE[0]],
        num_processes=int(count),
        process_id=int(index),
        initialization_timeout=timeout,
    )
    return True
