"""What a check says: one line, and one line of advice if something is to be done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
      check: what was looked at, in a word or two.
      found: what there is.
      advice: what to do about it; "" where all is well.
      code: exit code of `flaxlm.errors` if no run can start, or end well, like this; else 0.
    """

    check: str
    found: str
    advice: str = ""
    code: int = 0

    def __str__(self):
        mark = "STOP" if self.code else "note" if self.advice else "ok"
        line = f"{mark:>4}  {self.check:<13} {self.found}"
        return line + (f"\n{'':>21}-> {self.advice}" if self.advice else "")


def one_line(text: object, *, longest: int = 300) -> str:
    """Any text as one line of at most so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."
