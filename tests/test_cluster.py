"""What is read from the environments that launchers leave. No cluster is needed."""

import doctest

import pytest

from flaxlm import cluster
from flaxlm.cluster import Cluster, detect
from flaxlm.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}  # fmt: skip
GKE = {"TPU_WORKER_HOSTNAMES": "w-0,w-1,w-2,w-3", "TPU_WORKER_ID": "2"}
EXPLICIT = {
    "FLAXLM_COORDINATOR": "10.0.0.1:9000", "FLAXLM_NUM_PROCESSES": "2", "FLAXLM_PROCESS_ID": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(cluster, "has_plugin", lambda name: name == "libtpu")
    monkeypatch.setattr(cluster, "_on_tpu_vm", lambda: False)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},  # Kaggle, Colab, one TPU VM
        {"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_ID": "0"},
        {**GKE, "JAX_PLATFORMS": "cpu"},
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # The script of a batch job, which is no step of srun.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"JOB_COMPLETION_INDEX": "3"},
    ],
)
def test_one_process_is_no_cluster(environ):
    assert detect(environ) is None


def test_slurm():
    found = detect(SLURM)
    assert found == Cluster("Slurm job 4097", "gpu07:61441", 2, 1)
    assert detect({**SLURM, "JAX_COORDINATOR_PORT": "9"}).coordinator == "gpu07:9"
    # Tasks that share a node take one device each, unless Slurm has dealt them out.
    shared = {**SLURM, "SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
    assert detect(shared).device == 3
    assert detect({**shared, "CUDA_VISIBLE_DEVICES": "5"}).device is None
    assert detect({**shared, "CUDA_VISIBLE_DEVICES": "4,5,6,7"}).device == 3


def test_open_mpi():
    found = detect(OMPI)
    assert (found.coordinator, found.count, found.index) == ("10.96.0.1:62624", 4, 2)
    assert found.device == 0
    six = {**OMPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::1,fe80::2]:43370"}
    assert detect(six).coordinator == "[fe80::1]:61441"
    newer = {name: value for name, value in OMPI.items() if "orte" not in name}
    with pytest.raises(ConfigError, match="-x FLAXLM_COORDINATOR=HOST:PORT"):
        detect(newer)
    here = {**newer, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-1@1"}
    assert detect(here).coordinator == detect(here).coordinator
    assert detect(here).coordinator.startswith("127.0.0.1:")


def test_tpu_slices_of_gke():
    found = detect(GKE)
    hosts = ("w-0", "w-1", "w-2", "w-3")
    assert found == Cluster("TPU slice of 4 hosts", "w-0:8482", 4, 2, hosts=hosts)
    assert detect({**GKE, "JAX_COORDINATOR_PORT": "8476"}).coordinator == "w-0:8476"
    two = {
        **GKE, "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "job-0:8080",
    }  # fmt: skip
    found = detect(two)
    assert (found.coordinator, found.count, found.index) == ("job-0:8482", 8, 6)
    assert "slice 1 of 2" in found.name and found.hosts == ()
    with pytest.raises(ConfigError, match="TPU_WORKER_ID"):
        detect({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_tpu_vms_ask_their_metadata_server(monkeypatch):
    said = {
        "worker-network-endpoints": "unknown:0:10.0.0.7,unknown:1:10.0.0.8",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '3'\n"
        "MEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'\n",
    }
    found = detect({}, metadata=said.get)
    assert (found.coordinator, found.count, found.index) == ("10.0.0.1:8482", 6, 5)
    assert detect({}, metadata={**said, "tpu-env": None}.get).coordinator == "10.0.0.7:8482"
    alone = {"worker-network-endpoints": "10.0.0.7", "agent-worker-number": "0"}
    assert detect({}, metadata=alone.get) is None
    assert detect({}, metadata=lambda name: None) is None
    asked = []
    monkeypatch.setattr(cluster, "_on_tpu_vm", lambda: True)
    monkeypatch.setattr(cluster, "_ask_metadata", asked.append)
    assert detect({}) is None and asked[0] == "worker-network-endpoints"
    assert detect({"TPU_SKIP_MDS_QUERY": "1"}) is None and len(asked) == 3


def test_explicit_addresses_win():
    found = detect({**SLURM, **GKE, **EXPLICIT})
    assert found == Cluster("explicit addresses", "10.0.0.1:9000", 2, 1)
    indexed = {name: value for name, value in EXPLICIT.items() if "ID" not in name}
    assert detect({**indexed, "JOB_COMPLETION_INDEX": "0"}).index == 0
    alone = {"FLAXLM_COORDINATOR": "10.0.0.1:9000"}
    found = detect({**OMPI, **alone})
    assert (found.coordinator, found.count, found.index) == ("10.0.0.1:9000", 4, 2)
    assert detect({**SLURM, **alone}).count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FLAXLM_COORDINATOR": None}, "set but not FLAXLM_COORDINATOR"),
        ({"FLAXLM_PROCESS_ID": None}, "set but not FLAXLM_PROCESS_ID"),
        ({"FLAXLM_PROCESS_ID": "2"}, "FLAXLM_PROCESS_ID=2 of FLAXLM_NUM_PROCESSES=2"),
        ({"FLAXLM_NUM_PROCESSES": "two"}, "FLAXLM_NUM_PROCESSES=two"),
        ({"FLAXLM_COORDINATOR": "10.0.0.1"}, "expected host:port"),
    ],
)
def test_explicit_addresses_that_make_no_sense(change, message):
    environ = {name: value for name, value in (EXPLICIT | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        detect(environ)


def test_docstring_examples():
    found = doctest.testmod(cluster)
    assert found.failed == 0 and found.attempted
