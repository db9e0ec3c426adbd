"""What collectives move, and how long that takes."""

import math
from dataclasses import dataclass

from flaxlm.aot.chips import Chip
from flaxlm.aot.hlo import Instruction


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind over groups of one size.

    Attributes:
      kind: "all-gather", ...
      group: devices that take part in one.
      count: how many run in a step.
      bytes: of the whole arrays, before they are split or after they are gathered, per device.
      seconds: on the wire.
      crosses: whether groups cross slices (or, of GPUs, machines).
    """

    kind: str
    group: int
    count: int
    bytes: float
    seconds: float
    crosses: bool


def wire_seconds(kind: str, payload: float, group: int, chip: Chip, *, slices: int = 1) -> float:
    """Seconds of one collective by a ring over every torus axis that its group spans.

    Args:
      payload: bytes of the whole array.
      group: devices that take part.
      slices: how many slices (of GPUs: machines) the group spans; of each, equally many devices
        first reduce or last gather over the fast links, each with its part over the network.
    """
    if group <= 1:
        return 0.0
    if kind == "collective-permute":
        slow = chip.network_bandwidth if slices > 1 else 2 * chip.ici_bandwidth_per_link
        return payload / slow
    near = group // slices
    axes = min(chip.ici_axes, 3 if near >= 64 else 2 if near >= 16 else 1)
    fast = 2 * chip.ici_bandwidth_per_link * axes
    factor = {"all-reduce": 2.0, "all-to-all": 0.5, "ragged-all-to-all": 0.5}
    turns = factor[kind] if kind in factor else 1.0
    seconds = turns * payload * (near - 1) / near / fast
    if slices > 1:
        seconds += turns * payload / near * (slices - 1) / slices / chip.network_bandwidth
    return seconds


def payload_of(instruction: Instruction, group: int) -> float:
    """Bytes of the whole array: of a gather its result, of a scatter what is reduced."""
    shapes, operands = instruction.shapes, len(instruction.operands)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        shapes = shapes[operands : 2 * operands]  # (operands, results, contexts)
    elif instruction.opcode.endswith("-start") and len(shapes) >= 2 * operands:
        shapes = shapes[operands : 2 * operands]
    size = sum(shape.bytes for shape in shapes)
    return size * group if instruction.kind == "reduce-scatter" else size


def is_scatter(fusion: Instruction, inner: Instruction) -> bool:
    """Whether a fusion keeps only this device's part of an all-reduce: a TPU's reduce-scatter."""
    return inner.kind == "all-reduce" and 0 < math.ceil(fusion.bytes) <= inner.bytes / 2
