"""The table of faults in docs/reliability.md, written from a run of the tests that inject them.

    pytest -m faults --faults-table=docs/reliability.md

A test of a fault carries `@pytest.mark.faults(number)` and says with the fixture `fault_row` what
it did and what it saw. Only what passed is written.
"""

from pathlib import Path

import pytest

FAULTS = {
    1: "killed at any moment of a save",
    2: "SIGTERM at any moment",
    3: "newest checkpoint incomplete",
    4: "one bit of a checkpoint flipped",
    5: "interrupted copy of a run",
    6: "disk full, before the start or in the run",
    7: "run directory unwritable, missing, relative or in a bucket",
    8: "the same run started twice",
    9: "resumed on another mesh",
    10: "resumed on other numbers of devices and processes",
    11: "resumed with another model",
    12: "resumed with another vocabulary or tokenizer",
    13: "resumed with other dtypes",
    14: "loss, gradient or activation not finite",
    15: "prepared record corrupt, truncated, empty or missing",
    16: "data set empty, or smaller than a batch",
    17: "text that is not clean UTF-8",
    18: "documents too long or too short",
    19: "token or label out of range",
    20: "one of two processes stopped, killed or without data",
    21: "processes started with different configurations",
    22: "malformed experiment file",
    23: "mistyped override",
    24: "hostile checkpoint, archive or configuration",
}
BEGIN = "<!-- faults: written by `pytest -m faults --faults-table=docs/reliability.md` -->"
END = "<!-- faults end -->"
_HEAD = "| | fault | how injected | what happens | exit code | what is lost |\n" + "|---" * 6 + "|"


class Rows:
    """Collects the rows of the tests that passed; a pytest plugin.

    They travel with the reports, so that it works with several test processes too.
    """

    def __init__(self):
        self.rows: dict[tuple[int, str, str, str, str], None] = {}  # in order, each once

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            found = (tuple(row) for name, row in report.user_properties if name == "fault")
            self.rows |= dict.fromkeys(found)

    def missing(self) -> list[int]:
        """Numbers of the faults without a row."""
        return sorted(FAULTS.keys() - {row[0] for row in self.rows})

    def table(self) -> str:
        """Markdown, by number; the rows of one fault in the order in which the tests ran."""
        lines = [_HEAD]
        for number, name in FAULTS.items():
            cells = [row[1:] for row in self.rows if row[0] == number]
            for place, row in enumerate(cells):
                first = [str(number), name] if place == 0 else ["", ""]
                lines.append("| " + " | ".join([*first, *(_cell(text) for text in row)]) + " |")
        return "\n".join(lines)


def record(request: pytest.FixtureRequest, *, injected, happened, exit_code, lost="nothing"):
    """Keep one row for each number the test is marked with (see the fixture `fault_row`)."""
    numbers = [number for mark in request.node.iter_markers("faults") for number in mark.args]
    assert numbers and FAULTS.keys() >= {*numbers}, "mark the test: @pytest.mark.faults(1 to 24)"
    code = "runs on" if exit_code is None else str(exit_code)
    for number in numbers:
        row = (number, injected, happened, code, lost)
        request.node.user_properties.append(("fault", row))


def write(page: Path, table: str) -> None:
    """Replace what is between the two marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{page} lacks the marks {BEGIN} and {END}"
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
