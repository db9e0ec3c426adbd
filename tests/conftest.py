"""Every test sees 8 simulated CPU devices, refuses implicit rank promotion, and treats
deprecations as errors.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Another platform is for tests of its kernels, one file at a time.
os.environ["JAX_PLATFORMS"] = os.environ.get("FLAXLM_TEST_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # tests compile a lot and compute little
    ]
)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

from tests import reliability

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Tests of one run share compiled programs; FLAXLM_TEST_CACHE keeps them from run to run."""
    folder = os.environ.get("FLAXLM_TEST_CACHE") or str(
        tmp_path_factory.getbasetemp().parent / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """About 200 kB of English, one paragraph after the other."""
    from flaxlm.data import english

    file = tmp_path_factory.mktemp("text") / "english.txt"
    file.write_text("\n\n".join(english.documents())[:200_000], encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory):
    """Vocabularies and corpora that tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_for_tpus():
    """`run_for_tpus(program) -> its output`: Python text run in a process of its own in which
    libtpu compiles for TPUs that are not there.
    """

    def run(program: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_WORKER_HOSTNAMES": "localhost",
                "TPU_ACCELERATOR_TYPE": "v5p-8",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is here for its lock to protect
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
                **variables,
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def fault_row(request):
    """`fault_row(injected=, happened=, exit_code=, lost="nothing")`: what a test marked
    `faults(number)` did and saw, a row of docs/reliability.md. May be called several times;
    `exit_code=None` says that the run goes on.
    """
    return functools.partial(reliability.record, request)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")
    parser.addoption("--faults-table", help="write the table of faults into this page")


def pytest_configure(config):
    if config.getoption("--faults-table"):
        config.pluginmanager.register(reliability.Rows(), "faults-table")


def pytest_sessionfinish(session, exitstatus):
    page = session.config.getoption("--faults-table")
    if page and not hasattr(session.config, "workerinput"):  # xdist: one process has all rows
        rows = session.config.pluginmanager.get_plugin("faults-table")
        if exitstatus or rows.missing():
            text = f"{page} is left as it was: no passing test of the faults {rows.missing()}"
            pytest.exit(text, returncode=1)
        reliability.write(Path(page), rows.table())


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libtpu") is None:
        absent = pytest.mark.skip(reason="libtpu is not installed: pip install 'flaxlm[tpu]'")
        for item in items:
            if item.get_closest_marker("libtpu"):
                item.add_marker(absent)
