"""Start `flaxlm.health.trial` and say what came of it, however it ends."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping

from flaxlm.health.finding import Finding, one_line

SECONDS = 180.0  # a slice of many hosts takes a minute to start

# stage -> the exit code if it fails for a reason that has no code of its own
_CODES = {"start": 78, "imports": 78, "processes": 71, "devices": 78, "training": 70}
_CODES["checkpoint"] = 74

# What libraries say -> what to do. The first that matches counts.
_REMEDIES = (
    (r"Unknown flags? in (\w+): (.+)", r"take \2 out of \1: this jaxlib does not know it"),
    (r"Couldn't interpret value (\S+) for flag (\w+)", r"XLA_FLAGS: \2 cannot be \1"),
    (r"No module named '([\w.]+)'", r"pip install what brings \1, or reinstall flaxlm"),
    (r"known backends: \[([^\]]+)\]", r"JAX_PLATFORMS: there are \1"),
    (r"libtpu.so: cannot open", "pip install 'jax[tpu]', or unset JAX_PLATFORMS"),
    (r"already in use by process with pid (\d+)", r"wait for process \1, or kill \1"),
    (r"already in use|libtpu_lockfile", "end what holds the TPU; sudo rm /tmp/libtpu_lockfile"),
    (
        r"CUDA_ERROR_NO_DEVICE|no CUDA-capable device",
        "nvidia-smi must list a GPU; JAX_PLATFORMS=cpu",
    ),
    (r"driver version is insufficient|CUDA_ERROR_SYSTEM_DRIVER", "update NVIDIA's driver"),
    (r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OUT_OF_MEMORY", "end what else uses that memory"),
    (r"GLIBC(?:XX)?_[\d.]+' not found", "these wheels are for a newer Linux: use a newer image"),
    (r"(?:Import|OS)Error: .*\.so", "pip install --force-reinstall what brings it, or jax jaxlib"),
    (r"invalid truth value .* '(\w+)'", r"\1 is true or false"),
    (r"did not come|process\(es\) missing", "start the doctor on all hosts, as you would a run"),
)
_SIGNALS = {
    signal.SIGKILL: "perhaps for want of memory: dmesg | tail",
    signal.SIGILL: "these wheels need newer processors (AVX): choose another machine",
    signal.SIGSEGV: "a driver or a wheel is broken: pip install --force-reinstall jaxlib",
}
_ANYWAY = "run it alone for all it says: python -m flaxlm.health.trial"


def selftest(
    folder: str, environ: Mapping[str, str], *, seconds: float = SECONDS
) -> Iterator[Finding]:
    """Findings of the trial, as they come.

    Args:
      folder: where it may write a checkpoint for a moment; "" is a temporary folder.
      environ: environment of this process.
      seconds: after which it is ended.
    """
    # Beside a run, it takes the memory that it needs and no more; a peer that is not there is
    # known after a minute.
    gentle = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "FLAXLM_START_TIMEOUT": "60"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "flaxlm.health.trial", folder],
            env={**gentle, **environ},
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        late = threading.Event()

        def end():
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        stage, failed = "start", False
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "stage" in said:
                    stage = said["stage"]
                elif "finding" in said:
                    yield Finding(**said["finding"])
                else:
                    failed = True
                    advice = remedy(said["error"])
                    if said["code"] and advice == _ANYWAY:
                        advice = ""  # it says itself what would work
                    yield Finding(stage, said["error"], advice, said["code"] or _CODES[stage])
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        if stage != "end" and not failed:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            yield _died(stage, process.returncode, text, seconds if late.is_set() else None)


def remedy(text: str) -> str:
    """What to do about what a library said."""
    for pattern, advice in _REMEDIES:
        if match := re.search(pattern, text):
            return match.expand(advice).strip()
    return _ANYWAY


def _died(stage: str, code: int, text: str, seconds: float | None) -> Finding:
    """Of a trial that ended without a word of its own."""
    if seconds is not None:
        advice = "something holds the devices, or another host did not start: who holds it is above"
        if stage not in ("processes", "devices"):
            advice = _ANYWAY
        return Finding(stage, f"no end after {seconds:.0f} s", advice, 71)
    lines = [line for line in text.splitlines() if line.strip()]
    # XLA's last words are the line that begins with F; a list of all flags may follow.
    said = [line for line in lines if re.match(r"[EF]\d{4} ", line)] or lines[-1:]
    last = one_line(re.sub(r"^[EF]\d{4} .*?\] ", "", said[0])) if said else "nothing was said"
    advice = remedy(last)
    how = f"exit code {code}"
    if code < 0:
        number = signal.Signals(-code)
        how = number.name
        if advice == _ANYWAY and number in _SIGNALS:
            advice = _SIGNALS[number]
    return Finding(stage, f"{last} ({how})", advice, _CODES[stage])
