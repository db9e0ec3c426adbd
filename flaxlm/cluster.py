"""Which cluster this process was started on, read from what its launcher left in the environment.

    FLAXLM_COORDINATOR, ...     explicit addresses, which win over all that follows
    TPU_WORKER_HOSTNAMES, ...   a TPU slice on GKE; on a TPU VM its metadata server says the same
    MEGASCALE_*                 several TPU slices
    SLURM_*                     a job step of srun
    OMPI_*                      mpirun of Open MPI

One host of a TPU slice, one task of Slurm and one rank of Open MPI alone mean no cluster: Colab,
Kaggle, a single TPU VM and a laptop are runs of one process.
"""

import glob
import importlib.util
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flaxlm.errors import ConfigError

EXPLICIT = ("FLAXLM_COORDINATOR", "FLAXLM_NUM_PROCESSES", "FLAXLM_PROCESS_ID")
# Whose numbers complete an address alone: Open MPI, Slurm, an Indexed Job of Kubernetes.
_COUNTED = (
    {EXPLICIT[1]: "OMPI_COMM_WORLD_SIZE", EXPLICIT[2]: "OMPI_COMM_WORLD_RANK"},
    {EXPLICIT[1]: "SLURM_NTASKS", EXPLICIT[2]: "SLURM_PROCID"},
    {EXPLICIT[2]: "JOB_COMPLETION_INDEX"},
)
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_TPU_PORT = 8482  # jax's own; JAX_COORDINATOR_PORT overrides it
_PORTS = (61440, 4096)  # first and number of the ports that a job's number chooses from, as in jax


@dataclass(frozen=True)
class Cluster:
    """The place of this process among those of its run.

    Attributes:
      name: for people, such as "Slurm job 71".
      coordinator: host:port of process 0.
      count: processes of the run.
      index: of this one, from 0.
      hosts: of the processes, in their order, () if not known.
      device: the one accelerator of its host that this process is to use, None for all it sees.
    """

    name: str
    coordinator: str
    count: int
    index: int
    hosts: tuple[str, ...] = ()
    device: int | None = None


def detect(
    environ: Mapping[str, str], *, metadata: Callable[[str], str | None] | None = None
) -> Cluster | None:
    """The cluster of this process, None for a run of one process. Touches no device.

    Args:
      environ: the environment, `os.environ`.
      metadata: asks the metadata server of a TPU VM for an attribute; default: that server, if this
        machine has a TPU.

    Raises:
      ConfigError: what is there is incomplete or contradicts itself.
    """
    if any(name in environ for name in EXPLICIT):
        return _explicit(environ)
    found = _tpu(environ, metadata) or _slurm(environ) or _open_mpi(environ)
    return found if found is not None and found.count > 1 else None


def _explicit(environ: Mapping[str, str]) -> Cluster:
    values = {name: environ[name] for name in EXPLICIT if name in environ}
    if len(values) < len(EXPLICIT):  # the launcher may know the rest
        for names in _COUNTED:
            known = {ours: environ[name] for ours, name in names.items() if name in environ}
            values = known | values if len(known) == len(names) else values
    missing = [name for name in EXPLICIT if name not in values]
    if missing:
        raise ConfigError(
            f"{', '.join(values)} set but not {', '.join(missing)}: a run of many processes needs "
            "all three"
        )
    address, count, index = (values[name] for name in EXPLICIT)
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ConfigError(f"{EXPLICIT[0]}={address}: expected host:port of process 0")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            f"{EXPLICIT[2]}={index} of {EXPLICIT[1]}={count}: ids are whole numbers from 0 to the "
            "count - 1"
        )
    return Cluster("explicit addresses", address, int(count), int(index))


def _tpu(environ, metadata) -> Cluster | None:
    platforms = environ.get("JAX_PLATFORMS")
    if platforms and "tpu" not in platforms.split(","):
        return None  # whatever this machine is, the run does not use its TPU
    given = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if given:
        if not has_plugin("libtpu"):
            return None
        workers, kind = given, "TPU slice"
        worker, slices = environ.get("TPU_WORKER_ID"), environ.get
    else:
        if metadata is None:
            if "TPU_SKIP_MDS_QUERY" in environ or not _on_tpu_vm():
                return None
            metadata = _ask_metadata
        workers, kind = metadata("worker-network-endpoints"), "TPU VM slice"
        worker = metadata("agent-worker-number")
        described = _pairs(metadata("tpu-env") or "")
        slices = lambda name: environ.get(name) or described.get(name)
    if not workers:
        return None
    # "host", "host:port", or "name:number:address".
    parts = [entry.strip().split(":") for entry in workers.split(",")]
    hosts = [part[2] if len(part) == 3 else part[0] for part in parts]
    count = int(slices("MEGASCALE_NUM_SLICES") or 1)
    number = int(slices("MEGASCALE_SLICE_ID") or 0)
    if len(hosts) * count == 1:
        return None
    if worker is None:
        raise ConfigError(
            f"a TPU slice of {len(hosts)} hosts, but TPU_WORKER_ID does not say which this one is"
        )
    first = (slices("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).partition(":")[0]
    return Cluster(
        f"{kind} of {len(hosts)} hosts" + (f", slice {number} of {count}" if count > 1 else ""),
        f"{first}:{environ.get('JAX_COORDINATOR_PORT') or _TPU_PORT}",
        len(hosts) * count,
        int(worker) + number * len(hosts),
        hosts=tuple(hosts) if count == 1 else (),
    )


def _slurm(environ) -> Cluster | None:
    # The script of a batch job has SLURM_NTASKS as well; only a step of srun has its nodes.
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in environ for name in needed):
        return None
    job, nodes, count, index = (environ[name] for name in needed)
    shared = int(count) > int(environ.get("SLURM_STEP_NUM_NODES") or count)
    port = environ.get("JAX_COORDINATOR_PORT") or _port_of(int(job))
    return Cluster(
        f"Slurm job {job}",
        f"{first_node(nodes)}:{port}",
        int(count),
        int(index),
        device=_own_device(environ, "SLURM_LOCALID") if shared else None,
    )


def _open_mpi(environ) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ or "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    count, index = (int(environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK"))
    here = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
    uri = environ.get("OMPI_MCA_orte_hnp_uri")
    if uri and (match := re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)):
        host = match[1] or f"[{match[2]}]"
        job = int(uri.partition(".")[0]) // 4096
    elif here == count:
        host, job = "127.0.0.1", zlib.crc32((environ.get("PMIX_NAMESPACE") or "").encode())
    elif count > 1:
        raise ConfigError(
            f"Open MPI started {count} processes and does not say where process 0 is: add "
            "-x FLAXLM_COORDINATOR=HOST:PORT to mpirun"
        )
    else:
        return None
    return Cluster(
        "Open MPI",
        f"{host}:{environ.get('JAX_COORDINATOR_PORT') or _port_of(job)}",
        count,
        index,
        device=_own_device(environ, "OMPI_COMM_WORLD_LOCAL_RANK") if here > 1 else None,
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list.

    >>> first_node("node[003-007,12],gpu1"), first_node("a1,a2"), first_node("r[1-2]n[05-09]")
    ('node003', 'a1', 'r1n05')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def has_plugin(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _own_device(environ, variable: str) -> int | None:
    """Processes that share a host take one device each, unless the launcher has dealt them out."""
    visible = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES")
    if variable not in environ or (visible and "," not in visible):
        return None
    return int(environ[variable])


def _port_of(job: int) -> int:
    first, number = _PORTS
    return first + job % number


def _pairs(text: str) -> dict[str, str]:
    """{name: value} of lines such as "NAME: 'value'"."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip().strip("'") for name, colon, value in lines if colon}


def _on_tpu_vm() -> bool:
    return has_plugin("libtpu") and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _ask_metadata(name: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None
