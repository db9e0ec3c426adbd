"""How long a compiled step might take: a static estimate from the program's text alone.

The program is walked in the order the compiler gave it, loops times their trips. Instructions take
the compiler's own cycles, attention kernels (of which it knows nothing) their FLOPs at an assumed
share of the peak, collectives their bytes over the links that their group spans. Asynchronous
collectives and copies run beside what stands between their start and their end.

None of this was checked on hardware, and host stalls, stragglers and contention are not in it. Use
it to rank programs of one model on one chip and to find what is large; it is no measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flaxlm.aot.chips import Chip
from flaxlm.aot.clock import Clock
from flaxlm.aot.flops import attention_flops, product_flops
from flaxlm.aot.hlo import COLLECTIVES, Instruction, Module, parse
from flaxlm.aot.traffic import Traffic, is_scatter, payload_of, wire_seconds

# Assumed, not measured: share of the peak that a fused attention kernel reaches; and, of programs
# without the compiler's cycles (GPUs), the share of the peak that products reach.
ATTENTION_UTILISATION = 0.5
PRODUCT_UTILISATION = 0.7

# Instructions that move nothing.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "optimization-barrier opt-barrier domain add-dependency iota".split()
)
_MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")  # what runs beside by DMA


@dataclass(frozen=True)
class Estimate:
    """What a step costs, per device. All seconds are estimates.

    Attributes:
      flops: of matrix products and attention kernels.
      collectives: {kind: (count, bytes)}.
      traffic: the same by group size, the slowest first.
      hbm_bytes: read and written.
      compute_seconds: flops at the peak.
      hbm_seconds: hbm_bytes at the full bandwidth.
      ici_seconds: of the collectives, one after the other.
      matmul_cycles: the compiler's cycles of instructions that have a product.
      cycles: of all instructions; kernels and collectives have none.
      step_seconds: of the walk in order.
      breakdown: seconds that add up to step_seconds: matmul, attention, elementwise, copies,
        collectives (what of them is not hidden).
      unpriced: names of custom kernels that nothing is known of, {name: how often}; they count 0.
    """

    flops: float
    collectives: Mapping[str, tuple[int, float]]
    traffic: tuple[Traffic, ...]
    hbm_bytes: float
    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    matmul_cycles: float
    cycles: float
    step_seconds: float
    peak_flops: float
    breakdown: Mapping[str, float]
    unpriced: Mapping[str, int] = field(default_factory=dict)

    def mfu(self, model_flops_per_device: float) -> float:
        """Share of the peak that the model's own FLOPs (nothing recomputed) would reach."""
        return model_flops_per_device / self.peak_flops / self.step_seconds


def estimate(hlo_text: str, chip: Chip, *, slices: int = 1) -> Estimate:
    """The estimate of a compiled program.

    Args:
      hlo_text: what `compiled.as_text()` returns.
      chip: what it is compiled for.
      slices: of the mesh, outermost in it; groups that cross them use the slow network.

    Raises:
      hlo.HloError: the text is no compiled program.
    """
    walk = _Walk(parse(hlo_text), chip, slices)
    seconds = walk.run(walk.module.entry, 1)
    traffic = sorted(
        (
            Traffic(kind, group, int(count), size, wire, crosses)
            for (kind, group, crosses), (count, size, wire) in walk.traffic.items()
        ),
        key=lambda entry: -entry.seconds,
    )
    kinds = {entry.kind for entry in traffic}
    collectives = {
        kind: (
            sum(entry.count for entry in traffic if entry.kind == kind),
            sum(entry.bytes for entry in traffic if entry.kind == kind),
        )
        for kind in sorted(kinds)
    }
    return Estimate(
        flops=walk.flops,
        collectives=collectives,
        traffic=tuple(traffic),
        hbm_bytes=walk.hbm_bytes,
        compute_seconds=walk.flops / chip.peak_flops,
        hbm_seconds=walk.hbm_bytes / chip.hbm_bandwidth,
        ici_seconds=sum(entry.seconds for entry in traffic),
        matmul_cycles=walk.matmul_cycles,
        cycles=walk.cycles,
        step_seconds=seconds,
        peak_flops=chip.peak_flops,
        breakdown=walk.breakdown,
        unpriced=walk.unpriced,
    )


class _Walk:
    """Sums over a program. `times` is how often a computation runs in a step."""

    def __init__(self, module: Module, chip: Chip, slices: int):
        self.module, self.chip = module, chip
        self.flops = self.hbm_bytes = self.cycles = self.matmul_cycles = 0.0
        self.traffic: dict[tuple[str, int, bool], list[float]] = {}
        names = ("matmul", "attention", "elementwise", "copies", "collectives")
        self.breakdown = dict.fromkeys(names, 0.0)
        self.unpriced: dict[str, int] = {}
        self.island = chip.island or max(1, module.partitions // slices)
        self._inside: dict[str, float] = {}

    def run(self, computation: str, times: float) -> float:
        """Seconds of one pass through a computation."""
        clock = Clock()
        for instruction in self.module.instructions(computation):
            if instruction.opcode not in _FREE:
                self._step(clock, computation, instruction, times)
            elif instruction.opcode == "get-tuple-element":
                clock.pass_on(instruction)
        return clock.now

    def _step(self, clock, computation: str, instruction: Instruction, times: float) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            trips = self.module.trips(instruction)
            clock.now += trips * self.run(instruction.loop[1], times * trips)
        elif opcode == "conditional":
            clock.now += max(self.run(name, times) for name in instruction.called)
        elif opcode == "call":
            clock.now += sum(self.run(name, times) for name in instruction.called)
        elif opcode.endswith("-done") or instruction.name.startswith("async-collective-done"):
            waited, over_links = clock.wait(instruction)
            self.breakdown["collectives" if over_links else "copies"] += waited * times
        elif opcode.endswith("-update"):
            clock.update(instruction)
        elif opcode.endswith("-start") or instruction.name.startswith("async-collective-start"):
            self._start(clock, computation, instruction, times)
        elif opcode in COLLECTIVES:
            seconds = self._collective(computation, instruction, times)
            self.breakdown["collectives"] += clock.block(seconds) * times
        else:
            self._compute(clock, computation, instruction, times)

    def _start(self, clock, computation: str, instruction: Instruction, times: float) -> None:
        """What runs beside the rest until its end is waited for."""
        if instruction.kind in COLLECTIVES:
            inner = [(computation, instruction)]
        else:
            inner = list(self.module.reachable(instruction))
        collectives = [(place, x) for place, x in inner if x.kind in COLLECTIVES]
        if collectives:
            seconds = sum(self._collective(place, x, times) for place, x in collectives)
        else:
            moved = self._moved(computation, instruction)
            self.hbm_bytes += 2 * moved * times
            seconds = moved / self.chip.hbm_bandwidth
        clock.start(instruction, seconds, over_links=bool(collectives))

    def _compute(self, clock, computation: str, instruction: Instruction, times: float) -> None:
        self.hbm_bytes += self._hbm(computation, instruction) * times
        attention = attention_flops(self.module, computation, instruction)
        if attention:
            self.flops += attention * times
            seconds = attention / (ATTENTION_UTILISATION * self.chip.peak_flops)
            self._spend(clock, "attention", seconds, times)
            return
        if instruction.opcode == "custom-call" and instruction.target == "tpu_custom_call":
            self.unpriced[instruction.name] = int(times)
        flops = self._product(computation, instruction)
        self.flops += flops * times
        if instruction.opcode == "fusion":
            self._inner_collectives(clock, instruction, times)
        seconds = self._seconds(computation, instruction, flops)
        if instruction.cycles is not None:
            self.cycles += instruction.cycles * times
            self.matmul_cycles += instruction.cycles * times if flops else 0
        copies = instruction.opcode == "copy" or "copy" in instruction.name
        self._spend(
            clock, "matmul" if flops else "copies" if copies else "elementwise", seconds, times
        )

    def _inner_collectives(self, clock, instruction: Instruction, times: float) -> None:
        """Collectives inside a fusion: parts of one that began before, or one that blocks."""
        found = [
            (place, x) for place, x in self.module.reachable(instruction) if x.kind in COLLECTIVES
        ]
        if not found or clock.pass_on(instruction):
            return
        seconds = sum(
            self._collective(place, x, times, scattered=is_scatter(instruction, x))
            for place, x in found
        )
        self.breakdown["collectives"] += clock.block(seconds) * times

    def _spend(self, clock, kind: str, seconds: float, times: float) -> None:
        clock.now += seconds
        self.breakdown[kind] += seconds * times

    def _seconds(self, computation: str, instruction: Instruction, flops: float) -> float:
        if self.chip.clock_hz is not None:
            # Where a TPU's compiler is silent there is nothing to run.
            return (instruction.cycles or 0) / self.chip.clock_hz
        products = flops / (PRODUCT_UTILISATION * self.chip.peak_flops)
        return max(products, self._hbm(computation, instruction) / self.chip.hbm_bandwidth)

    def _product(self, computation: str, instruction: Instruction) -> float:
        """FLOPs of the products of an instruction, those inside a fusion included."""
        if instruction.opcode in ("dot", "convolution"):
            return product_flops(self.module, computation, instruction)
        if instruction.opcode != "fusion":
            return 0.0
        name = instruction.called[0]
        if name not in self._inside:
            self._inside[name] = sum(
                self._product(name, inner) for inner in self.module.instructions(name)
            )
        return self._inside[name]

    def _collective(
        self, computation: str, instruction: Instruction, times: float, *, scattered: bool = False
    ) -> float:
        """Seconds on the wire of one, counted `times`."""
        group = instruction.group(self.module.partitions)
        kind, payload = instruction.kind, payload_of(instruction, len(group))
        kind = "reduce-scatter" if scattered else kind
        spans = len({device // self.island for device in group})
        seconds = wire_seconds(kind, payload, len(group), self.chip, slices=spans)
        entry = self.traffic.setdefault((kind, len(group), spans > 1), [0, 0.0, 0.0])
        for at, value in enumerate((1, payload, seconds)):
            entry[at] += value * times
        return seconds

    def _moved(self, computation: str, instruction: Instruction) -> float:
        """Bytes of an asynchronous copy, slice or call: of its result, which is the smaller of the
        shapes it shows.
        """
        if instruction.kind in _MOVES or instruction.kind == "async":
            sizes = [shape.bytes for shape in instruction.shapes if shape.dims]
            return min(sizes, default=0.0)
        return sum(
            x.bytes for name in instruction.called for x in self.module.instructions(name) if x.root
        )

    def _hbm(self, computation: str, instruction: Instruction) -> float:
        """Bytes that an instruction reads from and writes to HBM."""
        around = self.module.computations[computation]
        operands = [around[name] for name in instruction.operands if name in around]
        written = _in_hbm(instruction)
        if instruction.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * written
        if instruction.opcode in ("dynamic-update-slice", "scatter"):
            return 2 * _in_hbm(operands[1 if instruction.opcode[0] == "d" else -1])
        if instruction.opcode != "fusion":
            return written + sum(map(_in_hbm, operands))
        inner = self.module.computations[instruction.called[0]]
        updates = [x for x in inner.values() if x.opcode == "dynamic-update-slice"]
        for update in updates:  # in place: the rest of the array is not touched
            if update.operands[1] in inner:
                written += inner[update.operands[1]].bytes - update.bytes
        return max(written, 0.0) + sum(
            _read(inner, at, operand, updates) for at, operand in enumerate(operands)
        )


def _read(inner, at: int, operand: Instruction, updates) -> float:
    """Bytes that a fusion reads of its operand number `at`: of one that it only takes slices of,
    the slices.
    """
    name = next(
        (x.name for x in inner.values() if x.opcode == "parameter" and x.literal == str(at)), None
    )
    if any(update.operands[0] == name for update in updates):
        return 0.0
    users = [x for x in inner.values() if name in x.operands]
    if users and all(x.opcode in ("dynamic-slice", "gather", "slice") for x in users):
        return min(_in_hbm(operand), sum(x.bytes for x in users))
    return _in_hbm(operand)


def _in_hbm(instruction: Instruction) -> float:
    return sum(shape.bytes for shape in instruction.shapes if shape.space == 0)
