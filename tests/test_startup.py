"""What a run sees to before its first step: kept programs, and an accelerator that is not used."""

import os
import subprocess
import sys

import jax

from flaxlm import startup
from tests import runs

PROGRAM = """
import jax
from flaxlm.startup import Programs

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
with Programs() as programs:
    jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
print(programs.made, programs.read, jax.config.jax_compilation_cache_dir)
print(programs.report(1, 2.5))
"""


def program(cache, **extra):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=runs.environment(cache, **extra),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_programs_are_kept_and_read(tmp_path):
    folder = f"{tmp_path}/programs/{startup._machine()}"
    assert program(tmp_path) == [
        f"1 0 {folder}",
        f"step 1 took 2.5 s; programs so far: 1 compiled, 0 read from {folder}",
    ]
    assert len(os.listdir(folder)) >= 1
    assert program(tmp_path)[0] == f"0 1 {folder}"


def test_jax_own_switches_decide(tmp_path):
    lines = program(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert lines[0] == "1 0 None" and "none kept" in lines[1]
    assert not (tmp_path / "programs").exists()
    before = jax.config.jax_compilation_cache_dir  # of the tests
    startup.Programs()
    assert jax.config.jax_compilation_cache_dir == before


def test_an_accelerator_that_is_not_used_is_said(monkeypatch):
    monkeypatch.setattr(startup, "has_plugin", lambda name: name == "libtpu")
    assert startup.idle_accelerator() == ""  # JAX_PLATFORMS=cpu is a choice
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "jax is installed for TPU (libtpu)" in startup.idle_accelerator()
    monkeypatch.setattr(startup, "has_plugin", lambda name: False)
    assert startup.idle_accelerator() == ""
