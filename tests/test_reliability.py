"""The frame of the table of faults: every number has a test and a row, and the page is whole."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import reliability

ROOT = Path(__file__).resolve().parent.parent


def test_every_fault_has_a_test():
    marks = [
        re.findall(r"^ *@?pytest\.mark\.faults\((.*?)\)", path.read_text(), re.MULTILINE)
        for path in (ROOT / "tests").glob("test_*.py")
    ]
    numbers = {int(number) for found in marks for text in found for number in text.split(",")}
    assert numbers == reliability.FAULTS.keys()


def test_every_fault_has_its_rows_in_the_page():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition(reliability.BEGIN)[2].partition(reliability.END)[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()[2:]]
    assert all(len(row) == 6 and all(cell.strip() for cell in row[2:]) for row in rows)
    numbered = {int(row[0]): row[1].strip() for row in rows if row[0].strip()}
    assert numbered == reliability.FAULTS


def test_rows_are_written_from_what_passed(tmp_path):
    class Report:
        when, passed, user_properties = "call", True, []

    rows = reliability.Rows()
    for number in range(1, 25):
        row = [number, "a\nb", "c | d", "74", "nothing"]
        Report.user_properties = [("fault", row), ("fault", row), ("other", 1)]
        rows.pytest_runtest_logreport(Report)
        assert rows.missing() == list(range(number + 1, 25))
    Report.passed = False
    Report.user_properties = [("fault", [1, "failed", "", "", ""])]
    rows.pytest_runtest_logreport(Report)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reliability.BEGIN}\nold\n{reliability.END}\nafter\n")
    reliability.write(page, rows.table())
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("before", "after", 24 + 6)
    first = f"| 1 | {reliability.FAULTS[1]} | a b | c \\| d | 74 | nothing |"
    assert first in lines and "old" not in lines and "failed" not in page.read_text()


def test_a_row_knows_its_numbers():
    marks = [SimpleNamespace(args=(15, 16))]
    node = SimpleNamespace(user_properties=[], iter_markers=lambda name: marks)
    request = SimpleNamespace(node=node)
    reliability.record(request, injected="x", happened="y", exit_code=None)
    assert node.user_properties == [
        ("fault", (number, "x", "y", "runs on", "nothing")) for number in (15, 16)
    ]
    marks[0].args = (25,)
    with pytest.raises(AssertionError, match="mark the test"):
        reliability.record(request, injected="x", happened="y", exit_code=None)
