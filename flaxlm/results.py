"""What runs scored on tasks: the files that `flaxlm.evaluate` and `flaxlm.prompts` leave in a run
directory, and their result.json of several runs as one table.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxlm.data.files import write_whole
from flaxlm.errors import DataError
from flaxlm.rundir import write_json

FOLDERS = ("evaluate", "prompts")


@dataclass(frozen=True)
class Result:
    """The main metric of one evaluation.

    Attributes:
      task: what was answered and how, "superglue/rte validation, 4 shots, by mean".
      metric: name of the main metric.
      value: of the run; of several prompts and seeds their mean.
      baseline: of the commonest answer; None where it is not known.
    """

    task: str
    metric: str
    value: float
    baseline: float | None


def folder_of(run: Path, command: str, name: str) -> Path:
    """Where a command, one of FOLDERS, writes what it found about `name` unless it is told."""
    return run / command / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def write_result(folder: Path, result: Mapping, report: str) -> str:
    """Write result.json and report.txt; returns the report and where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    write_whole(folder / "report.txt", (report + "\n").encode())
    return f"{report}\n\nwritten to {folder}"


def read_results(directory: Path) -> list[Result]:
    """The evaluations in a run directory, by task.

    Raises:
      DataError: a file is none that these commands wrote.
    """
    found = []
    for folder in FOLDERS:
        for path in sorted((directory / folder).glob("*/result.json")):
            try:
                found += _results(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path} is no result of an evaluation ({error!r})") from None
    return sorted(found, key=lambda one: one.task)


def _results(value: dict) -> Iterator[Result]:
    task, main = f"{value['task']} {value['split']}", value["main"]
    if "scores" in value:  # prompts: {measure: metrics} for each template and seed
        scores = [one["metrics"] for one in value["scores"]]
        for measure in scores[0] if scores else ():
            mean = statistics.fmean(float(metrics[measure][main]) for metrics in scores)
            several = f", mean of {len(scores)}" if len(scores) > 1 else ""
            yield Result(f"{task}, {value['shots']} shots, by {measure}{several}", main, mean, None)
    elif value["metrics"]:  # none of examples without labels
        baseline = value["baseline"] if "baseline" in value else None
        known = None if baseline is None else float(baseline)
        yield Result(task, main, float(value["metrics"][main]), known)


def task_rows(runs: Sequence[Sequence[Result]]) -> list[list[str]]:
    """Rows of [task, metric, baseline, a cell for each run]; "" where a run has no such result."""
    rows: dict[tuple[str, str], list[Result | None]] = {}
    for at, results in enumerate(runs):
        for one in results:
            rows.setdefault((one.task, one.metric), [None] * len(runs))[at] = one
    return [
        [*key, _baselines(found), *("" if one is None else f"{one.value:.2f}" for one in found)]
        for key, found in sorted(rows.items())
    ]


def _baselines(found: Sequence[Result | None]) -> str:
    """The baseline; several where the runs learned from other examples."""
    known = [one.baseline for one in found if one is not None and one.baseline is not None]
    return " / ".join(dict.fromkeys(f"{value:.2f}" for value in known))
