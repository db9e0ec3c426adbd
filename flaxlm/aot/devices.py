"""Devices that need not exist, as their compilers describe them.

A TPU program can be compiled on any machine with libtpu, a GPU program on any machine with jax's
CUDA wheels. A device of such a topology compiles and never computes.
"""

import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxlm import flags
from flaxlm.aot.chips import CHIPS, Chip
from flaxlm.aot.topologies import Topology
from flaxlm.errors import ConfigError, MissingInput


@dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
      devices: jax devices, of a topology or real ones.
      hbm_bytes: memory of one device that a program can have.
    """

    topology: Topology
    chip: Chip
    devices: Sequence
    hbm_bytes: int


def prepare_environment(topology: Topology) -> None:
    """Set what libtpu and jax read when they are loaded; to be called before jax is imported.

    Nothing here computes, so jax runs on the CPU and a TPU or GPU of this machine stays free.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.update(flags.environment("tpu" if topology.is_tpu else "gpu"))  # as a run has them
    if not topology.is_tpu:
        return
    # Without these libtpu asks the metadata server of a cloud that this machine is not in.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    # libtpu lets one process load it, to guard the chips. Where there are chips it may go on to.
    if not list(Path("/dev").glob("accel[0-9]*")) and not Path("/dev/vfio/0").exists():
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def check_installed(topology: Topology) -> None:
    """Refuse a topology whose compiler is not installed.

    Raises:
      MissingInput: with the command that installs it.
    """
    if topology.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise MissingInput(
            f"--topology {topology.name}: TPU programs are compiled by libtpu, which is not "
            "installed here: pip install 'flaxlm[tpu]'"
        )
    if not topology.is_tpu and not any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)
    ):
        raise MissingInput(
            f"--topology {topology.name}: GPU programs are compiled by jax's CUDA plugin, which is "
            "not installed here: pip install 'flaxlm[cuda13]'"
        )


def target(topology: Topology) -> Target:
    """The devices of a topology, to compile for.

    Raises:
      MissingInput: its compiler is not installed.
      ConfigError: the compiler does not know the topology.
    """
    check_installed(topology)
    chip = CHIPS[topology.chip]
    devices = _tpu_devices(topology) if topology.is_tpu else _gpu_devices(topology)
    return Target(topology, chip, devices, _available(devices[0], chip))


def _tpu_devices(topology: Topology) -> list:
    from jax.experimental import topologies

    options = {"wrap": _wraps(topology)}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.chip == "v4":  # without it, two devices to a chip
        options["chip_config_name"] = "megacore"
    return _described(
        topology,
        lambda: topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        ),
    )


def _wraps(topology: Topology) -> tuple[bool, bool, bool]:
    """Of which dims the ends are linked: a torus of whole cubes of 4 x 4 x 4, a flat slice along
    its dims of 16 (cloud.google.com/tpu/docs). Left unsaid, the compiler takes none to be, and
    gathers by all-reduce: twice the bytes.
    """
    if len(topology.shape) == 3:
        return (all(size % 4 == 0 for size in topology.shape),) * 3
    return (*(size == 16 for size in topology.shape), False)


def _gpu_devices(topology: Topology) -> list:
    from jax.experimental import topologies

    hosts, gpus = topology.shape
    return _described(
        topology,
        lambda: topologies.get_topology_desc(
            platform="cuda",
            topology=f"1x{hosts}x{gpus}",
            target_config=_gpu_config(CHIPS[topology.chip]),
        ),
    )


def _described(topology: Topology, describe) -> list:
    import jax

    try:
        devices = list(describe().devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        said = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(f"--topology {topology.name}: the compiler refuses it: {said}") from error
    assert len(devices) == topology.devices, f"{len(devices)} devices of {topology}"
    return devices


def _gpu_config(chip: Chip) -> str:
    """A GpuTargetConfigProto of a Hopper GPU in text form: what XLA would ask the driver for."""
    size, bandwidth = chip.hbm_bytes, int(chip.hbm_bandwidth)
    return f"""
        platform_name: "CUDA"
        device_description_str: "{chip.name}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
          core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
          shared_memory_per_core: 233472 l2_cache_size: 52428800
          device_memory_size: {size} memory_bandwidth: {bandwidth} device_address_bits: 64
          device_vendor: "NVIDIA Corporation" name: "{chip.name}" ecc_enabled: true
          driver_version: "13.0.0" runtime_version: "13.0.0" dnn_version: "9.10.0"
          compile_time_toolkit_version: "13.0.0"
        }}"""


@functools.cache
def _available(device, chip: Chip) -> int:
    """Bytes of one device's memory that a program can have: of a TPU what its compiler says when a
    program is far too large, of a GPU the share that jax takes.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from flaxlm.aot.memory import out_of_memory

    if device.platform != "tpu":
        return int(chip.hbm_bytes * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")))
    sharding = SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**32, 1024), jnp.float32, sharding=sharding)
    try:
        jax.jit(jnp.negative, out_shardings=sharding).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(error)
        if found:
            return found.available
        raise
    raise AssertionError(f"a program of 16 TiB fits a {chip.name}")
