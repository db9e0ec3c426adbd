"""TPUs and GPUs: what the machine has, who holds it, and why jax may see less."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flaxlm.cluster import has_plugin
from flaxlm.health.finding import Finding

_GOOGLE, _NETWORK = "0x1ae0", "0x0042"  # PCI: vendor, and its device that is a network card
_NVIDIA = "0x10de"
_NODES = re.compile(r"/dev/(?:accel\d+|vfio/\d+|nvidia\d+)")
_TPU_LOCK = "tmp/libtpu_lockfile"
_CUDA_13 = 580  # first driver for it (docs.nvidia.com/cuda/cuda-toolkit-release-notes)
_PLUGINS = {"TPU": ("libtpu",), "GPU": ("jax_cuda13_plugin", "jax_cuda12_plugin")}


@dataclass(frozen=True)
class Hardware:
    """What this machine shows of accelerators, found without any of their software.

    Attributes:
      tpus: device files of TPU chips.
      gpus: device files of NVIDIA GPUs.
      driver: version of NVIDIA's driver, "" without one.
      on_bus: NVIDIA devices on the PCI bus; in a container they may be another's.
    """

    tpus: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    driver: str = ""
    on_bus: int = 0


def hardware(root: Path = Path("/")) -> Hardware:
    """Look at /dev, /proc and the PCI bus."""
    devices = [_pci(folder) for folder in (root / "sys/bus/pci/devices").glob("*")]
    tpu_on_bus = any(vendor == _GOOGLE and device != _NETWORK for vendor, device, _ in devices)
    tpus = _names(root, "accel[0-9]*") or (_names(root, "vfio/[0-9]*") if tpu_on_bus else ())
    version = root / "proc/driver/nvidia/version"
    found = re.search(r"\b(\d{3}\.[\d.]+)", version.read_text()) if version.is_file() else None
    displays = [kind for vendor, _, kind in devices if vendor == _NVIDIA]
    return Hardware(
        tpus=tpus,
        gpus=_names(root, "nvidia[0-9]*"),
        driver=found[1] if found else "",
        on_bus=sum(kind.startswith("0x03") for kind in displays),
    )


def machine(found: Hardware, root: Path = Path("/")) -> Iterator[Finding]:
    """What the machine has, and what of it a process of this user cannot open."""
    has = [f"{len(found.tpus)} TPU chip(s)"] * bool(found.tpus)
    has += [f"{len(found.gpus)} NVIDIA GPU(s)"] * bool(found.gpus)
    has += [f"NVIDIA driver {found.driver}"] * bool(found.driver)
    yield Finding("accelerators", ", ".join(has) or "none in this machine")
    for name in (*found.tpus, *found.gpus):
        if not os.access(root / name.lstrip("/"), os.R_OK | os.W_OK):
            advice = f"ls -l {name}: join its group, or start as its owner"
            yield Finding("accelerators", f"you may not open {name}", advice, 78)
    if found.gpus and not found.driver and not shutil.which("nvidia-smi"):
        advice = "install NVIDIA's driver, then nvidia-smi must list the GPU"
        yield Finding("accelerators", f"{found.gpus[0]} without a driver", advice, 78)
    elif found.driver and not found.gpus:
        text = f"driver {found.driver}, but no /dev/nvidia*: a container without its GPUs?"
        yield Finding("accelerators", text, "docker run --gpus all, or modprobe nvidia-uvm")
    elif found.on_bus and not found.gpus:
        text = f"{found.on_bus} NVIDIA GPU(s) on the PCI bus, without a driver"
        yield Finding("accelerators", text, "install NVIDIA's driver, if the GPU is to be used")
    lock = root / _TPU_LOCK
    if found.tpus and lock.exists() and not os.access(lock, os.R_OK | os.W_OK):
        text = f"/{_TPU_LOCK} belongs to another user, and libtpu wants to open it"
        yield Finding("accelerators", text, f"sudo rm /{_TPU_LOCK}", 78)


def holders(root: Path = Path("/"), own: int | None = None) -> Iterator[Finding]:
    """Which processes hold an accelerator open.

    Args:
      own: process that is left out; default: this one.
    """
    own, hidden = os.getpid() if own is None else own, 0
    for process in sorted((root / "proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if int(process.name) == own:
            continue
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # it ended, or a file of it closed, while it was looked at
        nodes = sorted({link for link in links if _NODES.fullmatch(link)})
        if nodes:
            command = words.decode(errors="replace").strip()[:120]
            text = f"{', '.join(nodes)}: process {process.name} ({command})"
            advice = f"wait for it, or end it (kill {process.name}): a TPU serves one process"
            yield Finding("held by", text, advice)
    if hidden and hardware(root) != Hardware():
        text = f"{hidden} processes of other users could not be looked at"
        yield Finding("held by", text, "sudo shows them: sudo python -m flaxlm.doctor")


def seen(
    platform: str,
    devices: str,
    found: Hardware,
    environ: Mapping[str, str],
    has: Mapping[str, bool] | None = None,
) -> Finding:
    """Whether jax uses what the machine has.

    Args:
      platform: of jax's devices, "cpu", "tpu" or "gpu".
      devices: in words, "8 x TPU v5e".
      has: {module of a plugin: whether it is installed}; default: as it is.
    """
    chosen = environ.get("JAX_PLATFORMS")
    if platform != "cpu" or not (found.tpus or found.gpus) or chosen:
        said = f" (JAX_PLATFORMS={chosen})" if chosen else ""
        return Finding("devices", devices + said)
    if has is None:
        has = {name: has_plugin(name) for names in _PLUGINS.values() for name in names}
    kind = "TPU" if found.tpus else "GPU"
    text = f"{devices}, although this machine has {(found.tpus or found.gpus)[0]}"
    if any(has[name] for name in _PLUGINS[kind]):
        ask = "tpu" if kind == "TPU" else "cuda"
        return Finding("devices", text, f"JAX_PLATFORMS={ask} says why; who holds it is above", 78)
    return Finding("devices", f"{text}; jax has no plugin for it", install(found), 78)


def install(found: Hardware) -> str:
    """The command that installs jax for this hardware."""
    if found.tpus:
        return "pip install 'jax[tpu]', or JAX_PLATFORMS=cpu to train without the TPU"
    old = found.driver and int(found.driver.partition(".")[0]) < _CUDA_13
    extra = "cuda12" if old else "cuda13"
    why = f" (CUDA 13 needs driver {_CUDA_13})" if old else ""
    return f"pip install 'jax[{extra}]'{why}, or JAX_PLATFORMS=cpu to train without the GPU"


def _names(root: Path, pattern: str) -> tuple[str, ...]:
    return tuple(f"/{path.relative_to(root)}" for path in sorted((root / "dev").glob(pattern)))


def _pci(folder: Path) -> tuple[str, str, str]:
    """(vendor, device, class) of a PCI device, "" for what cannot be read."""

    def read(name):
        try:
            return (folder / name).read_text().strip()
        except OSError:
            return ""

    return read("vendor"), read("device"), read("class")
