"""Time within one computation of a program: what the core waits for and what runs beside it."""

from flaxlm.aot.hlo import Instruction


class Clock:
    """Time within one computation: the core's, and until when links and copy engines are busy."""

    def __init__(self):
        self.now = self._links = self._copies = 0.0
        self._ends: dict[str, tuple[float, bool]] = {}
        self._held: dict[str, tuple[float, bool]] = {}

    def start(self, instruction: Instruction, seconds: float, *, over_links: bool) -> None:
        """Begin what runs beside; without operands it begins with its update, which brings them."""
        if instruction.opcode.endswith("-start") and not instruction.operands:
            self._held[instruction.name] = (seconds, over_links)
            return
        self._begin(instruction.name, seconds, over_links)

    def _begin(self, name: str, seconds: float, over_links: bool) -> None:
        begin = max(self.now, self._links if over_links else self._copies)
        if over_links:
            self._links = begin + seconds
        else:
            self._copies = begin + seconds
        self._ends[name] = (begin + seconds, over_links)

    def update(self, instruction: Instruction) -> None:
        held = [self._held.pop(name) for name in instruction.operands if name in self._held]
        for seconds, over_links in held:
            self._begin(instruction.name, seconds, over_links)
        if not held:
            self.pass_on(instruction)

    def pass_on(self, instruction: Instruction) -> bool:
        """Let the instruction stand for what its operands stand for, if anything still runs."""
        ends = [self._ends[name] for name in instruction.operands if name in self._ends]
        if ends:
            self._ends[instruction.name] = max(ends)
        return bool(ends)

    def wait(self, instruction: Instruction) -> tuple[float, bool]:
        """(seconds that the core waits for the operand's end, whether for links)."""
        ends = [self._ends[name] for name in instruction.operands if name in self._ends]
        end, over_links = max(ends, default=(self.now, False))
        waited = max(0.0, end - self.now)
        self.now += waited
        return waited, over_links

    def block(self, seconds: float) -> float:
        """Seconds that the core waits for a collective that it stops for."""
        end = max(self.now, self._links) + seconds
        waited, self.now, self._links = end - self.now, end, end
        return waited
