"""What one accelerator can do, by its data sheet: the constants that an estimate rests on.

All figures are of one jax device. A TPU7x chip shows itself as two devices, each with half of it;
a v4 chip as one (`chip_config_name="megacore"`).

Sources: HBM, peak and links of the TPUs from cloud.google.com/tpu/docs (one page per version) and
the chapter on TPUs of "How to Scale Your Model" (jax-ml.github.io/scaling-book), which also has the
share of a chip in its host's network; NVIDIA's data sheets of H100 SXM and H200 SXM. Peaks are
those of `flaxlm.metrics`. The clock of a TPU is published for v4 (1050 MHz, Jouppi et al. 2023);
the others follow from peak FLOP/s and the number and size of the matrix units.
"""

from dataclasses import dataclass

from flaxlm.metrics import peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: as topologies call it.
      peak_flops: dense bf16 matrix FLOP/s.
      hbm_bytes: memory.
      hbm_bandwidth: bytes/s.
      ici_bandwidth_per_link: bytes/s of one link in one direction; of NVLink all links of a GPU
        count as one axis, with two links.
      ici_axes: dims of the torus; every axis has a link to either side.
      clock_hz: what the compiler's cycles count; None where programs carry none (GPUs).
      devices_per_chip: jax devices that one chip shows.
      network_bandwidth: bytes/s of this device's share of the data-centre network, one direction.
      island: devices that the fast links join; 0: a whole slice.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth_per_link: float
    ici_axes: int
    clock_hz: float | None
    devices_per_chip: int
    network_bandwidth: float
    island: int = 0


def _tpu(name, kind, hbm_gib, hbm, link, axes, clock, network, *, devices=1) -> Chip:
    peak = peak_flops(kind)
    return Chip(name, peak, hbm_gib * GIB, hbm, link, axes, clock, devices, network)


def _gpu(name, hbm_gb, hbm) -> Chip:
    # NVLink 4: 450 GB/s a direction; 400 Gbit/s InfiniBand per GPU; 8 GPUs around one switch.
    peak = peak_flops(name)
    return Chip(name, peak, hbm_gb * 10**9, hbm, 225e9, 1, None, 1, 50e9, island=8)


_ALL = (
    # name, kind, GiB, HBM B/s, B/s per link, torus dims, clock, network B/s
    _tpu("v4", "tpu v4", 32, 1228e9, 4.5e10, 3, 1.05e9, 3.125e9),
    _tpu("v5e", "tpu v5e", 16, 819e9, 4.5e10, 2, 1.5e9, 3.125e9),
    _tpu("v5p", "tpu v5p", 95, 2765e9, 9e10, 3, 1.75e9, 6.25e9),
    _tpu("v6e", "tpu v6e", 32, 1640e9, 9e10, 2, 1.75e9, 12.5e9),
    # Two devices share the links and the network of a chip.
    _tpu("tpu7x", "tpu7x", 96, 3690e9, 4.5e10, 3, 2.2e9, 6.25e9, devices=2),
    _gpu("h100", 80, 3350e9),
    _gpu("h200", 141, 4800e9),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}
CHIPS["v7"] = CHIPS["tpu7x"]
