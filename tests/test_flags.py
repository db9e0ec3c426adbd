"""Compiler flags: the user's win, nothing is set where there is no accelerator, and the compilers
that are installed know every one of them (one that they do not know ends the process).
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from flaxlm import flags
from flaxlm.errors import ConfigError

TPU = flags.PLATFORMS["tpu"][1]


def test_ours_are_added_to_the_users():
    found = flags.environment("tpu", {"LIBTPU_INIT_ARGS": "--xla_mine=1", "PATH": "/bin"})
    words = found["LIBTPU_INIT_ARGS"].split()
    assert words[-1] == "--xla_mine=1"
    assert words[:-1] == [str(flag) for flag in TPU]


def test_a_flag_that_the_user_has_set_is_not_set_again():
    name = TPU[0].name
    for given in (f"--{name}=false", f"-{name}", f"--{name}"):
        words = flags.environment("tpu", {"LIBTPU_INIT_ARGS": given})["LIBTPU_INIT_ARGS"].split()
        assert [word for word in words if name in word] == [given]
        assert len(words) == len(TPU)


def test_twice_is_as_good_as_once(monkeypatch):
    monkeypatch.setattr(flags, "platforms", lambda environ: ("tpu", "gpu"))
    environ = {"XLA_FLAGS": "--xla_mine=1"}
    flags.use(environ)
    once = dict(environ)
    flags.use(environ)
    assert environ == once
    assert set(once) == {"LIBTPU_INIT_ARGS", "XLA_FLAGS"}


def test_none_adds_nothing_and_other_words_are_refused():
    assert flags.environment("tpu", {"FLAXLM_FLAGS": "none"}) == {}
    assert flags.environment("cpu", {}) == {}
    with pytest.raises(ConfigError, match="FLAXLM_FLAGS=fast: only 'none' is known"):
        flags.environment("gpu", {"FLAXLM_FLAGS": "fast"})


def test_only_accelerators_with_a_plugin_that_jax_may_use(monkeypatch):
    installed = {"libtpu", "jax_cuda13_plugin"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    assert flags.platforms({}) == ("tpu", "gpu")
    assert flags.platforms({"JAX_PLATFORMS": "cpu"}) == ()
    assert flags.platforms({"JAX_PLATFORMS": "cuda,cpu"}) == ("gpu",)
    installed.clear()
    environ = {}
    flags.use(environ)
    assert environ == {}


def test_the_banner_tells_ours_from_the_users():
    environ = {"LIBTPU_INIT_ARGS": f"--xla_mine=1 --{TPU[0].name}=false"}
    environ |= flags.environment("tpu", environ)
    line = flags.summary("tpu", environ)
    assert line.startswith(f"LIBTPU_INIT_ARGS: {len(TPU) - 1} by flaxlm (")
    assert line.endswith(f"yours: --xla_mine=1 --{TPU[0].name}=false")
    assert flags.summary("tpu", {}) == "" and flags.summary("cpu", environ) == ""


def test_every_flag_says_why_and_none_twice():
    for _, table in flags.PLATFORMS.values():
        assert all(flag.why for flag in table)
        assert len({flag.name for flag in table}) == len(table)


def test_jaxlib_knows_the_gpu_flags():
    """Its parser is in the builds for CPUs too, and ends the process at one that it does not
    know.
    """
    known = _devices(
        {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.environment("gpu", {})["XLA_FLAGS"]}
    )
    assert known.returncode == 0, known.stderr[-2000:]
    unknown = _devices({"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_enable_miracles=true"})
    assert unknown.returncode != 0


def _devices(environment):
    return subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.libtpu
def test_libtpu_knows_the_tpu_flags(run_for_tpus):
    program = """
import jax
from jax.experimental import topologies
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
layout = jax.sharding.SingleDeviceSharding(devices[0])
argument = jax.ShapeDtypeStruct((8, 128), "float32", sharding=layout)
jax.jit(lambda x: x + 1).lower(argument).compile()
print("compiled")
"""
    assert "compiled" in run_for_tpus(program, **flags.environment("tpu", {}))
