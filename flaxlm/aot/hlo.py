"""A reader of compiled HLO text, what `compiled.as_text()` returns.

The text is a list of computations; a computation is a list of instructions in the order in which
they run; an instruction has a shape, an opcode, operands and attributes:

    %fused.1 (p.0: bf16[8,4]) -> f32[8] {
      %p.0 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
      ROOT %r = f32[8]{0} fusion(%p.0), kind=kLoop, calls=%other, backend_config={...}
    }

Only what the cost of a program hangs on is understood; the rest of the attributes stays text.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from flaxlm.errors import UserError

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*-> .*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_UNKNOWN = 2**60  # cycles at and above it say that the compiler has no estimate

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class HloError(UserError):
    """Text that is not a compiled module."""


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's result.

    Attributes:
      dtype: as HLO writes it: "bf16", "f32", "pred".
      dims: sizes.
      space: memory space of the layout; 0 is HBM, on TPU 1 is on-chip vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.elements * _bits(self.dtype) / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its module.
      opcode: "fusion", "all-gather-start", ...
      shapes: of the arrays of the result, those of nested tuples in their order.
      operands: names.
      attributes: everything after the operands.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    root: bool

    @property
    def bytes(self) -> float:
        """Of the whole result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def kind(self) -> str:
        """The opcode without "-start", "-update" and "-done"."""
        return re.sub(r"-(start|update|done)$", "", self.opcode)

    @cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate, where it has one."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found and int(found[1]) < _UNKNOWN else None

    @cached_property
    def target(self) -> str | None:
        """What a custom call calls: "tpu_custom_call" (Pallas), "__cudnn$fmhaSoftmax", ..."""
        return self._attribute(r'custom_call_target="([^"]*)"')

    @cached_property
    def source(self) -> str:
        """Where it comes from in the traced program, "" if that is not said."""
        return self._attribute(r'op_name="([^"]*)"') or ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that run when this runs: of fusions, calls, asynchronous
        starts and conditionals; not of loops, and not the function of a reduction.
        """
        if self.opcode == "conditional":
            branches = self._attribute(r"branch_computations=\{([^}]*)\}")
            if branches:
                return tuple(_NAME.findall(branches))
            return tuple(re.findall(r"(?:true|false)_computation=%([\w.\-]+)", self.attributes))
        word = "to_apply" if self.kind == "call" else "calls"
        name = self._attribute(rf"\b{word}=%?([\w.\-]+)")
        return (name,) if name else ()

    @property
    def loop(self) -> tuple[str, str]:
        """(condition, body) of a while."""
        return (
            self._attribute(r"\bcondition=%?([\w.\-]+)"),
            self._attribute(r"\bbody=%?([\w.\-]+)"),
        )

    def numbers(self, name: str) -> tuple[int, ...]:
        """The integers of `name={1,2}`, () where the attribute is not there."""
        found = self._attribute(rf"\b{name}=\{{([\d,]*)\}}")
        return tuple(int(x) for x in found.split(",") if x) if found else ()

    def number(self, name: str, *, default: int) -> int:
        """The integer of `name=1`; `default` is what HLO means where it leaves it out."""
        found = self._attribute(rf"\b{name}=(\d+)")
        return default if found is None else int(found)

    def words(self, name: str) -> str:
        """The text of `name=word`, "" where the attribute is not there."""
        return self._attribute(rf"\b{name}=([^,\s]+)") or ""

    @cached_property
    def window(self) -> Mapping[str, tuple[str, ...]]:
        """{"size": ("3", "3"), "pad": ("1_1", "1_1")} of a convolution, {} without one."""
        text = self._attribute(r"\bwindow=\{([^}]*)\}") or ""
        return {key: tuple(x.split("x")) for key, x in (item.split("=") for item in text.split())}

    def group(self, partitions: int) -> tuple[int, ...]:
        """Ids of the devices of a collective's first group: all of them where no group is named.
        Of a permutation the first two that exchange.

        Understood are the lists {{0,1},{2,3}}, the iota form [2,4]<=[4,2]T(1,0) and the mesh form
        mesh['a'=2,'b'=4] {'b'}, where an axis may be cut: 'b':(2)2.
        """
        pairs = self._attribute(r"source_target_pairs=\{\{(\d+,\d+)\}")
        listed = self._attribute(r"replica_groups=\{\{([\d,]*)\}") or pairs
        if listed:
            return tuple(int(x) for x in listed.split(","))
        iota = re.search(
            r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.attributes
        )
        if iota:
            dims = [int(x) for x in iota[3].split(",")]
            order = [int(x) for x in iota[4].split(",")] if iota[4] else list(range(len(dims)))
            return _transposed(dims, order)[: int(iota[2])]
        mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", self.attributes)
        if mesh:
            sizes = [(name, int(n)) for name, n in re.findall(r"'([\w.]+)'=(\d+)", mesh[1])]
            return _along(sizes, re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", mesh[2]))
        return tuple(range(partitions))

    def _attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: {name: {instruction name: instruction}} in the order of the text.
      entry: name of the computation that is the program.
      partitions: devices that run it together.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    partitions: int

    def instructions(self, computation: str) -> Iterator[Instruction]:
        return iter(self.computations[computation].values())

    def reachable(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of everything inside what `instruction` calls."""
        for name in instruction.called:
            for inner in self.instructions(name):
                yield name, inner
                yield from self.reachable(inner)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: what the compiler knows, or else the bound that its condition
        compares the counter with (loops that jax makes count from 0); 1 if there is neither.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = {x.name: x for x in self.instructions(loop.loop[0])}
        constants = {name: int(x.literal) for name, x in condition.items() if _is_count(x)}
        compared = [
            constants[name]
            for x in condition.values()
            if x.root or x.opcode == "compare"
            for name in x.operands
            if name in constants
        ]
        return max(compared or constants.values(), default=1)


def parse(text: str) -> Module:
    """The module of a text.

    Raises:
      HloError: there is no entry computation in it.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = None, None
    for line in _whole_lines(text):
        if not line[0].isspace():
            header = _HEADER.match(line)
            current = header[2] if header else None
            if header:
                computations[current] = {}
                entry = current if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            computations[current][instruction.name] = instruction
    if entry is None:
        raise HloError(
            "this is not the text of a compiled program: no line begins with ENTRY; pass what "
            "compiled.as_text() returns"
        )
    partitions = re.search(r"num_partitions=(\d+)", text)
    replicas = re.search(r"replica_count=(\d+)", text)
    devices = math.prod(int(x[1]) for x in (partitions, replicas) if x)
    return Module(computations, entry, devices)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, with those that an attribute's line breaks made joined to their instruction."""
    held = None
    for line in text.splitlines():
        if not line.strip():
            continue
        # A kernel's metadata breaks its line and goes on at the margin: `"key": ...`, then `}}`.
        rest = line[0] in '"{}' and line.strip() != "}"
        begins = not (line[0].isspace() or rest) or _INSTRUCTION.match(line)
        if begins:
            if held is not None:
                yield held
            held = line
        elif held is not None:
            held += " " + line.strip()
    if held is not None:
        yield held


def _instruction(name: str, text: str, root: bool) -> Instruction:
    kind, rest = _split_shape(text)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        raise HloError(f"instruction %{name}: no opcode in {rest[:80]!r}")
    end = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : end]
    return Instruction(
        name=name,
        opcode=opcode[1],
        shapes=tuple(_shapes(kind)),
        operands=tuple(_NAME.findall(inside)),
        attributes=rest[end + 1 :],
        literal=inside,
        root=root,
    )


def _split_shape(text: str) -> tuple[str, str]:
    """(result shape, rest); a tuple's shape is in parentheses and has blanks in it."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    raise HloError(f"a parenthesis is never closed: {text[start : start + 80]!r}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(x.lstrip("<=")) for x in dims.split(",") if x)
        yield Shape(dtype, sizes, int(space[1]) if space else 0)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, u64, f8e4m3fn
    return int(width[1]) if width else 0  # tokens and other things without bytes


def _is_count(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.literal.isdigit()


def _transposed(dims: list[int], order: list[int]) -> tuple[int, ...]:
    """0, 1, 2, ... laid out in `dims` and read in the order of the transposed dims."""
    strides = [math.prod(dims[at + 1 :]) for at in range(len(dims))]
    places = product(*(range(dims[at]) for at in order))
    return tuple(
        sum(i * strides[at] for i, at in zip(place, order, strict=True)) for place in places
    )


def _along(sizes: list[tuple[str, int]], axes: list[tuple[str, str, str]]) -> tuple[int, ...]:
    """Ids of the devices of a mesh that differ along `axes` alone, from device 0 on. An axis is
    (name, "", "") or, cut, (name, product of the parts before it, its own size).
    """
    stride, strides, whole = 1, {}, dict(sizes)
    for name, size in reversed(sizes):
        strides[name] = stride
        stride *= size
    ranges = []
    for name, before, size in axes:
        count = int(size) if size else whole[name]
        inner = whole[name] // (int(before) * count) if size else 1
        ranges.append([i * inner * strides[name] for i in range(count)])
    return tuple(sum(place) for place in product(*ranges))
