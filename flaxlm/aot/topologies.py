"""Names of slices and hosts: what a user types, what Google Cloud sells, how chips are wired."""

import math
import re
from dataclasses import dataclass

from flaxlm.aot.chips import CHIPS
from flaxlm.errors import ConfigError, nearest

# Dims of a topology of each chip; a core of a v4 or v5p chip is not a device of its own (megacore).
_TORUS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_GPUS = ("h100", "h200")
_ALIASES = {
    "v5litepod": "v5e",
    "trillium": "v6e",
    "v7": "tpu7x",
    "v7x": "tpu7x",
    "ironwood": "tpu7x",
}

# Google Cloud's names count TensorCores for v4 and v5p, two to a chip, and chips for the others.
_CORES = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16)}
_FLAT |= {256: (16, 16)}
_CUBIC = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}
_CUBIC |= {128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16)}
_CUBIC |= {2048: (8, 16, 16), 4096: (16, 16, 16), 6144: (16, 16, 24)}

# The largest slice that is sold.
_LARGEST = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}


@dataclass(frozen=True)
class Topology:
    """Chips and how they are wired.

    Attributes:
      chip: a name of `chips.CHIPS`.
      shape: chips along each dim of the torus; of GPUs, hosts and GPUs per host.
      slices: how many of these, joined by the data-centre network.
    """

    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """ "v5p:4x4x4", as one types it."""
        return f"{self.chip}:{'x'.join(map(str, self.shape))}"

    def __str__(self):
        return self.name + (f" x {self.slices} slices" if self.slices > 1 else "")

    @property
    def is_tpu(self) -> bool:
        return self.chip in _TORUS

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Of all slices, as jax counts them."""
        return self.chips * CHIPS[self.chip].devices_per_chip


def parse(text: str, *, slices: int = 1) -> Topology:
    """A topology from "v5p:4x4x4", a Google Cloud name ("v5litepod-256", "v5p-128"), or of GPUs
    "h100:8" and "h100:4x8" (hosts x GPUs).

    Raises:
      ConfigError: saying what would work.
    """
    if not text:
        raise ConfigError("which slice? --topology v5p:4x4x4; --list shows all chips")
    match = re.fullmatch(r"([a-z0-9]+)(?::([0-9]+(?:x[0-9]+)*)|-([0-9]+))", text.lower())
    if not match:
        raise ConfigError(
            f"--topology {text}: expected CHIP:AxBxC as in v5p:4x4x4, or a name such as v5e-256"
        )
    name, shape, count = match.groups()
    chip = _ALIASES.get(name, name)
    if chip not in _TORUS and chip not in _GPUS:
        raise ConfigError(f"--topology {text}: {nearest(name, [*_TORUS, *_GPUS, *_ALIASES])}")
    dims = _counted(text, chip, int(count)) if count else tuple(map(int, shape.split("x")))
    if chip in _GPUS:
        dims = (1, *dims) if len(dims) == 1 else dims
        if len(dims) != 2 or min(dims) < 1:
            raise ConfigError(f"--topology {text}: expected GPUs or HOSTSxGPUS, as in {chip}:4x8")
        if slices > 1:
            raise ConfigError(f"--slices {slices}: GPUs have none; more hosts are {chip}:4x8")
        return Topology(chip, dims)
    example = f"{chip}:{'x'.join('4' * _TORUS[chip])}"
    if len(dims) != _TORUS[chip]:
        raise ConfigError(
            f"--topology {text}: a {chip} slice has {_TORUS[chip]} dims, as in {example}"
        )
    if min(dims) < 1 or math.prod(dims) > _LARGEST[chip]:
        raise ConfigError(
            f"--topology {text}: a {chip} slice has 1 to {_LARGEST[chip]} chips, as in {example}; "
            "--slices joins several"
        )
    return Topology(chip, dims, slices)


def larger(topology: Topology) -> Topology | None:
    """The usual slice with twice the chips, or None: there is no such slice."""
    if not topology.is_tpu:
        hosts, gpus = topology.shape
        return Topology(topology.chip, (hosts * 2, gpus))
    twice = 2 * math.prod(topology.shape)
    shapes = _FLAT if len(topology.shape) == 2 else _CUBIC
    if twice not in shapes or twice > _LARGEST[topology.chip]:
        return None
    return Topology(topology.chip, shapes[twice], topology.slices)


def with_devices(chip: str, devices: int) -> Topology | None:
    """The usual slice of that many devices, or None: there is no such slice."""
    if chip in _GPUS:
        return Topology(chip, (1, devices) if devices <= 8 else (devices // 8, 8))
    shapes = _FLAT if _TORUS[chip] == 2 else _CUBIC
    count = devices // CHIPS[chip].devices_per_chip
    return Topology(chip, shapes[count]) if count in shapes else None


def listing() -> str:
    """The chips and an example of a slice of each."""
    lines = []
    for name in (*_TORUS, *_GPUS):
        shape = "x".join("4" * _TORUS[name]) if name in _TORUS else "4x8"
        chip = CHIPS[name]
        most = f"to {_LARGEST[name]} chips" if name in _TORUS else "hosts x GPUs"
        lines.append(
            f"{f'{name}:{shape}':14} {most:15} {chip.devices_per_chip} device(s) a chip, each "
            f"{chip.hbm_bytes / 2**30:.0f} GiB, {chip.peak_flops / 1e12:.0f} TFLOP/s in bf16"
        )
    return "\n".join(lines)


def _counted(text: str, chip: str, count: int) -> tuple[int, ...]:
    """Shape of a slice that is named by its size."""
    if chip in _GPUS:
        return (count,)
    if chip not in _CORES:
        raise ConfigError(f"--topology {text}: write its shape, as in {chip}:4x4x4")
    shapes = _FLAT if _TORUS[chip] == 2 else _CUBIC
    chips, rest = divmod(count, _CORES[chip])
    if rest or chips not in shapes or chips > _LARGEST[chip]:
        legal = ", ".join(str(chips * _CORES[chip]) for chips in shapes if chips <= _LARGEST[chip])
        raise ConfigError(f"--topology {text}: sizes are {legal}; others by shape, {chip}:AxBxC")
    return shapes[chips]
