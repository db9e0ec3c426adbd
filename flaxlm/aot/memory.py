"""Memory of one device: of a program that compiled, and of one that the compiler refused."""

import re
from dataclasses import dataclass

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGTB]?)i?B?"
# What libtpu says before it schedules a program, and after it laid out its memory.
_OUT_OF_MEMORY = (
    re.compile(rf"total memory required .*?\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"[Uu]sed {_SIZE} of {_SIZE} hbm"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      arguments: state and batch.
      outputs: what the step returns.
      aliased: outputs that take the place of a donated argument.
      temporaries: activations, gradients, buffers of collectives.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class OutOfMemory:
    """The compiler's refusal: bytes that the program takes of one device, and that there are."""

    needed: int
    available: int


def memory_of(compiled) -> Memory:
    """The memory of a compiled program, by its own account."""
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def out_of_memory(error: Exception) -> OutOfMemory | None:
    """The numbers of a compiler's refusal, or None if `error` is another one."""
    for pattern in _OUT_OF_MEMORY:
        match = pattern.search(str(error))
        if match:
            needed, unit, available, other = match.groups()
            return OutOfMemory(
                int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[other])
            )
    return None
