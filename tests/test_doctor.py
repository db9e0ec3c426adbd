"""The doctor names what is wrong with a machine, each thing in one line with advice, and never
fails itself. Machines are made of files, versions and settings are given.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flaxlm import doctor
from flaxlm.health import accelerators, machine, selftest, settings, software, storage
from flaxlm.health.accelerators import Hardware
from flaxlm.health.finding import Finding
from flaxlm.lock import RunLock
from tests import runs
from tests.test_distributed import free_port

NVIDIA = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"


# Programs are made once, small ones too.
_KEPT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}


def root(folder: Path, files: dict[str, str]) -> Path:
    """A machine made of files: {path: text}, or "-> target" for a link."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(text[3:]) if text.startswith("-> ") else path.write_text(text)
    return folder


def lines(findings) -> str:
    """What would be printed of a finding or of several."""
    findings = [findings] if isinstance(findings, Finding) else list(findings)
    assert all("\n" not in finding.found + finding.advice for finding in findings)
    return "\n".join(map(str, findings))


def run(*argv: str, **environ: str) -> tuple[str, int]:
    """The command in a process of its own: what it printed, its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "flaxlm.doctor", *argv],
        env={**os.environ, **_KEPT, "PYTHONPATH": str(runs.ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout, done.returncode


# The whole command


@pytest.mark.slow
def test_a_sound_machine_trains_saves_and_repeats(tmp_path):
    cache = jax.config.jax_compilation_cache_dir
    said, code = run(f"--run.directory={tmp_path}/runs/a", JAX_COMPILATION_CACHE_DIR=cache)
    assert code == 0 and "STOP" not in said, said
    for check in ("python", "packages", "memory", "run directory", "clock", "encoding", "imports"):
        assert re.search(f"^  ok  {check} ", said, re.MULTILINE), (check, said)
    assert re.search(r"ok  devices +8 x cpu", said)
    assert re.search(r"ok  training +loss \d\.\d+ -> \d\.\d+ in 12 steps", said)
    assert re.search(r"ok  checkpoint +saved, verified, restored bit for bit", said)
    assert re.search(r"ok  repeatable +6 more steps", said)
    assert "xla_force_host_platform_device_count=8: pretends" in said  # tests do
    assert said.splitlines()[-1].startswith("nothing stands in the way of a run; ")
    assert list(tmp_path.iterdir()) == []  # nothing is left


@pytest.mark.slow
def test_it_tries_the_processes_of_a_run_together(tmp_path):
    shared = {
        "FLAXLM_COORDINATOR": f"127.0.0.1:{free_port()}",
        "FLAXLM_NUM_PROCESSES": "2",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "PYTHONPATH": str(runs.ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "flaxlm.doctor", f"--run.directory={tmp_path}"],
            env={**os.environ, **_KEPT, **shared, "FLAXLM_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for index, text in enumerate(said):
        assert f"this is {index} of 2, and all are there" in text
        assert "4 x cpu, 2 of them here" in text and "restored bit for bit" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_broken_jax_is_a_finding_and_hides_no_other(tmp_path):
    fake = root(tmp_path, {"jax/__init__.py": "raise ImportError('libfoo.so.1: cannot open')"})
    said, code = run("--run.directory=gs://bucket/run", PYTHONPATH=f"{fake}{os.pathsep}{runs.ROOT}")
    assert code == 73  # the first thing in the way
    assert "gs://bucket/run: object stores are not supported" in said
    assert f"{fake}/jax is imported in place of the real jax" in said
    assert re.search(r"STOP  imports +ImportError: libfoo.so.1: cannot open\n +-> pip inst", said)
    assert said.splitlines()[-1].startswith("2 thing(s) in the way, first of all: run directory")


def test_help_and_typos(capsys):
    assert doctor.main(["--help"]) == 0 and "--run.directory" in capsys.readouterr().out
    assert doctor.main(["--run.dir=x"]) == 78
    assert "--run.directory" in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_the_self_test():
    program = """
import sys
from flaxlm import doctor
for name, check in doctor.checks("")[:-1]:
    assert list(doctor.look(name, check)), name
assert not {"jax", "jaxlib", "numpy", "flax"} & set(sys.modules)
"""
    environ = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)


def test_a_check_that_fails_is_one_line():
    def check():
        yield Finding("disk", "fine")
        raise RuntimeError("no\nsuch thing")

    found = list(doctor.look("disk", check))
    assert found[0] == Finding("disk", "fine")
    assert found[1].found == "could not be looked at: RuntimeError: no such thing"
    assert found[1].code == 0 and "1 note(s)" in doctor.verdict(found)


# The self test


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("--xla_no_such=1", "take --xla_no_such=1 out of XLA_FLAGS"),
        ("--xla_force_host_platform_device_count=x", "_device_count cannot be x"),
    ],
)
def test_flags_that_end_the_process(setting, advice):
    (*_, found) = selftest.selftest("", {**os.environ, "XLA_FLAGS": setting})
    assert found.check == "devices" and found.code == 78 and advice in found.advice, found


@pytest.mark.slow
def test_a_platform_that_is_not_there():
    (*_, found) = selftest.selftest("", {**os.environ, "JAX_PLATFORMS": "cup"})
    assert found.code == 78 and found.advice.startswith("JAX_PLATFORMS: there are 'cpu'")


@pytest.mark.slow
def test_a_host_that_does_not_come():
    alone = {"FLAXLM_COORDINATOR": f"127.0.0.1:{free_port()}", "FLAXLM_NUM_PROCESSES": "2"}
    alone |= {"FLAXLM_PROCESS_ID": "0", "FLAXLM_START_TIMEOUT": "1"}
    (*_, found) = selftest.selftest("", {**os.environ, **alone})
    assert found.check == "processes" and found.code == 71
    assert "process 1 of 2 did not come" in found.found and "on all hosts" in found.advice


@pytest.mark.parametrize(
    ("program", "text", "advice", "code"),
    [
        ("import time; time.sleep(100)", "no end after 4 s", "run it alone", 71),
        ("import os; os.kill(os.getpid(), 4)", "SIGILL", "newer processors", 78),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL", "want of memory", 78),
        ("print('noise'); import missing_part", "missing_part", "what brings missing_part", 78),
    ],
)
def test_a_trial_that_hangs_or_dies(tmp_path, program, text, advice, code):
    fake = root(tmp_path, {"jax/__init__.py": program})
    environ = {**os.environ, "PYTHONPATH": f"{fake}{os.pathsep}{runs.ROOT}"}
    (found,) = selftest.selftest("", environ, seconds=4)
    assert text in found.found and advice in found.advice and found.code == code, found


def test_words_of_libraries_have_remedies():
    for text, advice in {
        "The TPU is already in use by process with pid 71. Not attempting": "kill 71",
        "ABORTED: libtpu_lockfile: Permission denied": "sudo rm /tmp/libtpu_lockfile",
        "RESOURCE_EXHAUSTED: Out of memory while trying": "end what else uses that memory",
        "/lib/libm.so.6: version `GLIBC_2.38' not found (required by x)": "newer image",
        "invalid truth value 'foo' for environment 'JAX_ENABLE_X64'": "JAX_ENABLE_X64 is true",
        "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected": "nvidia-smi",
    }.items():
        assert advice in selftest.remedy(text), text
    assert "python -m flaxlm.health.trial" in selftest.remedy("what nobody has seen")
    assert signal.SIGILL in selftest._SIGNALS


# Software


def test_versions_against_what_is_declared_and_tested():
    have = {"jax": "0.13.1", "flax": "0.12.10", "optax": "0.2.7", "numpy": "3.0.0"}
    needed = ["jax>=0.10.2,<0.13", "flax>=0.12.8,<0.13", "optax>=0.2.8,<0.3", "numpy>=2", "psutil"]
    needed += ["colorama; sys_platform == 'nowhere'"]
    found = {finding.check: finding for finding in software.packages(needed, have.get)}
    assert found["packages"].found == "1 as needed: flax 0.12.10"
    assert found["jax"].code == 78 and found["jax"].advice == "pip install 'jax<0.13,>=0.10.2'"
    assert "0.2.7 is not <0.3,>=0.2.8" in found["optax"].found
    assert "newer than any it was tested with" in found["numpy"].found and not found["numpy"].code
    assert found["psutil"].found == "not installed" and found["psutil"].code == 78
    assert "colorama" not in found


def test_python_against_what_is_declared():
    assert software.python(">=3.11", "3.12.4").advice == ""
    assert software.python(">=3.11", "3.10.2").code == 78
    assert "newer than any" in software.python(">=3.11", "3.15.0").found


def test_plugins_belong_to_their_jax():
    needed = [
        "jaxlib<=0.12.0,>=0.12.0", "numpy>=2", 'libtpu==0.0.50.*; extra == "tpu"',
        'jax-cuda13-plugin<=0.12.0,>=0.12.0; extra == "cuda13"',
    ]  # fmt: skip
    have = {"jax": "0.12.0", "jaxlib": "0.12.0", "jax-cuda13-plugin": "0.11.0"}
    found = {finding.check: finding for finding in software.plugins(needed, have.get)}
    assert set(found) == {"jaxlib", "jax-cuda13-plugin"} and not found["jaxlib"].code
    assert found["jax-cuda13-plugin"].code == 78
    assert found["jax-cuda13-plugin"].advice == "pip install --upgrade 'jax[cuda13]==0.12.0'"
    assert lines(software.plugins(needed, {"jax": "0.12.0"}.get)).count("not installed") == 1


def test_what_is_declared_is_what_pyproject_says():
    python, requirements = software.declared()
    assert python == ">=3.11" and any(text.startswith("jax>=") for text in requirements)
    names = {re.match(r"[\w-]+", text)[0] for text in requirements}
    assert set(software.TESTED) - {"python"} <= names


def test_files_that_hide_packages(tmp_path):
    folder = root(
        tmp_path / "mine",
        {"random.py": "", "numpy/__init__.py": "", "notes.py": "", "jax/readme.txt": ""},
    )
    site = root(tmp_path / "site", {"numpy/__init__.py": "", "jax/__init__.py": ""})
    found = lines(software.shadows([folder, site, folder], {"numpy": site, "jax": site}))
    assert f"{folder}/numpy is imported in place of the real numpy" in found
    assert f"{folder}/random.py is imported in place of the real random" in found
    assert found.count("in place of") == 2
    here = software.places(["numpy", "no-such-distribution"])
    assert here["flaxlm"] == runs.ROOT and (here["numpy"] / "numpy").is_dir()


# Settings


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"JAX_ENABLE_X64": "True"}, "twice the memory"),
        ({"JAX_PLATFORMS": "cup"}, "did you mean cpu"),
        ({"JAX_PLATFORMS": "cpu,tpu"}, "no plugin for it\n +-> pip install 'jax.tpu.'"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "75"}, "is no share"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".1"}, "lies idle"),
        ({"XLA_FLAGS": "--xla_a=1 --xla_dump_to=/d"}, "--xla_dump_to=/d: writes every program"),
        ({"TF_XLA_FLAGS": "--x"}, "XLA_FLAGS is the one"),
        ({"TF_CPP_MIN_LOG_LEVEL": "3"}, "hides why"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
        ({"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}, "hides the CUDA that comes with jax"),
        ({"FLAXLM_CAHCE": "/x"}, "read by nobody\n +-> did you mean FLAXLM_CACHE"),
        ({"FLAXLM_FLAGS": "all"}, "STOP"),
        ({"JAX_THREEFRY_PARTITIONABLE": "0"}, "dropout then depends on the mesh"),
    ],
)
def test_settings_that_hurt(setting, said):
    found = lines(settings.environment(setting, has=lambda name: name == "jaxlib"))
    assert re.search(said, found) and len(re.findall("^(note|STOP)", found, re.M)) == 1, found


def test_settings_that_are_fine():
    fine = {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_ENABLE_X64": "0", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "FLAXLM_CACHE": "/x",
        "CUDA_VISIBLE_DEVICES": "0,1", "TF_CPP_MIN_LOG_LEVEL": "1", "HOME": "/root",
        "FLAXLM_TPU_CONFIG": "tpu/config.env", "TF_TOKEN_SECRET": "s",
    }  # fmt: skip
    (found,) = settings.environment(fine)
    assert not found.advice and "JAX_PLATFORMS=cpu" in found.found and "SECRET" not in found.found


def test_misspelt_options_of_jax():
    known = list(jax.config.values)
    given = {"JAX_PLATFORM": "cpu", "JAX_ENABLE_X64": "0", "JAX_COORDINATOR_PORT": "1"}
    assert "JAX_PLATFORMS?" in lines(settings.unknown_options(given, known))
    assert len(list(settings.unknown_options(given, known))) == 1


def test_every_variable_of_ours_is_known():
    text = "".join(path.read_text() for path in (runs.ROOT / "flaxlm").rglob("*.py"))
    read = set(re.findall(r"\bFLAXLM_[A-Z_]+[A-Z]\b", text))
    assert read == set(settings.OURS)


def test_encoding():
    fine = dict(filesystem="utf-8", preferred="UTF-8", output="utf8")
    assert settings.encoding(**fine).advice == ""
    odd = settings.encoding(**fine | {"preferred": "ANSI_X3.4-1968"})
    assert odd.found == "files in ANSI_X3.4-1968" and "PYTHONUTF8=1" in odd.advice


# Machine and storage


def test_the_memory_of_a_container(tmp_path):
    two = root(
        tmp_path / "two",
        {
            "proc/self/cgroup": "0::/job/task\n",
            "sys/fs/cgroup/job/memory.max": f"{2**20}\n",
            "sys/fs/cgroup/job/memory.current": "1024\n",
            "sys/fs/cgroup/job/task/memory.max": "max\n",
            "sys/fs/cgroup/job/task/memory.current": "1000\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
        },
    )
    assert machine.container_memory(two) == (2**20, 1024)
    assert "1.5 by the container's quota" in machine.processors(two).found
    found = machine.memory(two)
    assert "of this container" in found.found and found.advice
    one = root(
        tmp_path / "one",
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "77",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "7",
        },
    )
    assert machine.container_memory(one) == (77, 7)
    assert machine.container_memory(tmp_path / "none") == (None, 0)


def test_limits_and_clock():
    assert list(machine.limits({"files": 4096, "size": -1, "memory": -1})) == []
    found = lines(machine.limits({"files": 256, "size": 2**30, "memory": 2**30}))
    assert "ulimit -n" in found and "ulimit -f" in found and "ulimit -v" in found
    assert machine.clock().advice == ""
    assert "1970-01-01 00:01 UTC, which is in the past" in machine.clock(60.0).found


def test_folders_are_tried_and_left_as_they_were(tmp_path):
    (found, *_) = storage.writable("run directory", tmp_path / "a/b", code=73)
    assert not found.code and f"{tmp_path}/a/b (to be made in {tmp_path})" in found.found
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    (found,) = storage.writable("run directory", file / "run", code=73)
    assert found.code == 73 and "part of that path is a file" in found.advice
    mounts = f"/dev/a / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n"
    fake = root(tmp_path / "root", {"proc/mounts": mounts})
    assert storage.file_system(Path("/"), fake) == "ext4"
    found = lines(storage.writable("run directory", tmp_path, code=73, root=fake))
    assert "is tmpfs: it is memory" in found and "STOP" not in found


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file system without files")
def test_a_folder_that_cannot_be_written():
    (found,) = storage.writable("run directory", "/proc/run", code=73)
    assert found.code == 73 and "cannot be written" in found.found


def test_a_run_that_holds_its_directory(tmp_path):
    assert list(storage.holder(tmp_path)) == []
    with RunLock(tmp_path):
        before = (tmp_path / "RUN.lock").read_bytes()
        assert f"held by process {os.getpid()} on " in lines(storage.holder(tmp_path))
        assert (tmp_path / "RUN.lock").read_bytes() == before


def test_programs_are_counted(tmp_path, monkeypatch):
    root(tmp_path, {"programs/cpu/a": "x" * 2**20, "programs/b": "y"})
    monkeypatch.setenv("FLAXLM_CACHE", str(tmp_path))
    assert storage.programs({}).found == f"{tmp_path}/programs: 2 files, 0.00 GiB"
    named = storage.programs({"JAX_COMPILATION_CACHE_DIR": f"{tmp_path}/none"})
    assert named.found == f"{tmp_path}/none: 0 files, 0.00 GiB"


# Accelerators


def test_a_tpu_vm(tmp_path):
    old = root(tmp_path / "v4", {"dev/accel0": "", "dev/accel1": "", "dev/accel/accel0": ""})
    assert accelerators.hardware(old) == Hardware(tpus=("/dev/accel0", "/dev/accel1"))
    pci = "sys/bus/pci/devices/0000:00:05.0"
    files = {"dev/vfio/0": "", "dev/vfio/vfio": "", f"{pci}/vendor": "0x1ae0\n"}
    new = root(tmp_path / "v5", {**files, f"{pci}/device": "0x0063\n"})
    assert accelerators.hardware(new) == Hardware(tpus=("/dev/vfio/0",))
    network = root(tmp_path / "gvnic", {**files, f"{pci}/device": "0x0042\n"})
    assert accelerators.hardware(network) == Hardware()


def test_machines_with_a_gpu(tmp_path):
    driver = {"proc/driver/nvidia/version": NVIDIA.format("570.86.15")}
    whole = root(tmp_path / "a", {**driver, "dev/nvidia0": "", "dev/nvidiactl": ""})
    found = accelerators.hardware(whole)
    assert found == Hardware(gpus=("/dev/nvidia0",), driver="570.86.15")
    assert "STOP" not in lines(accelerators.machine(found, whole))
    contained = accelerators.hardware(root(tmp_path / "b", driver))
    assert "docker run --gpus all" in lines(accelerators.machine(contained))
    pci = "sys/bus/pci/devices/0000:01:00.0"
    files = {f"{pci}/vendor": "0x10de", f"{pci}/device": "0x2335", f"{pci}/class": "0x030200"}
    bare = accelerators.hardware(root(tmp_path / "c", files))
    assert "without a driver" in lines(accelerators.machine(bare))
    assert "none in this machine" in lines(accelerators.machine(Hardware()))


@pytest.mark.parametrize(
    ("found", "has", "environ", "advice"),
    [
        (Hardware(gpus=("/dev/nvidia0",), driver="580.82.07"), (), {}, "'jax[cuda13]'"),
        (Hardware(gpus=("/dev/nvidia0",), driver="550.54.15"), (), {}, "'jax[cuda12]' (CUDA 13"),
        (Hardware(gpus=("/dev/nvidia0",)), ("jax_cuda12_plugin",), {}, "JAX_PLATFORMS=cuda says"),
        (Hardware(tpus=("/dev/accel0",)), (), {}, "pip install 'jax[tpu]'"),
        (Hardware(tpus=("/dev/accel0",)), ("libtpu",), {}, "JAX_PLATFORMS=tpu says why"),
        (Hardware(tpus=("/dev/accel0",)), (), {"JAX_PLATFORMS": "cpu"}, ""),
        (Hardware(), (), {}, ""),
    ],
)
def test_why_jax_sees_less_than_there_is(found, has, environ, advice):
    names = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    installed = {name: name in has for name in names}
    said = accelerators.seen("cpu", "1 x cpu", found, environ, installed)
    assert (advice in said.advice and said.code == 78) if advice else said.code == 0
    assert accelerators.seen("tpu", "4 x TPU v5e", found, environ, installed).code == 0


def test_who_holds_an_accelerator(tmp_path):
    fake = root(
        tmp_path,
        {
            "proc/71/cmdline": "python\0-m\0flaxlm.train\0",
            "proc/71/fd/0": "-> /dev/null",
            "proc/71/fd/5": "-> /dev/accel1",
            "proc/71/fd/6": "-> /dev/accel0",
            "proc/72/cmdline": "bash\0",
            "proc/72/fd/1": "-> /dev/vfio/vfio",
            "proc/73/cmdline": "python\0",
            "proc/73/fd/9": "-> /dev/nvidia0",
            "proc/74/cmdline": "gone\0",  # without fd: it ended
        },
    )
    (found,) = accelerators.holders(fake, own=73)
    assert found.found == "/dev/accel0, /dev/accel1: process 71 (python -m flaxlm.train)"
    assert "kill 71" in found.advice
    assert len(list(accelerators.holders(fake, own=1))) == 2
