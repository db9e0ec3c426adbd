"""`python -m flaxlm.report RUN [RUN ...]`: the curves of runs, as a PNG, an HTML page and Markdown.

The page stands alone: the picture is inside it, and it loads nothing. The Markdown is for notes: a
link to the picture and the table of final values, a run per line. What the runs scored on tasks
(`flaxlm.evaluate`, `flaxlm.prompts`) is in both, a task per line.
"""

import base64
import html
import json
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from flaxlm import goodput
from flaxlm.arguments import HELP, Flag, help_page, parse_argv
from flaxlm.console import format_count, format_seconds
from flaxlm.curves import draw
from flaxlm.errors import ConfigError, DataError, MissingInput, StorageError, command
from flaxlm.metrics import FILE, read_lines
from flaxlm.results import Result, read_results, task_rows

FLAGS = {
    "--out": Flag("write PREFIX.png, .html and .md (RUN/report; ./report for several)", "PREFIX"),
    "--metric": Flag("draw this held-out metric instead of the loss, such as gain", "NAME"),
    "--help": HELP,
}


@dataclass(frozen=True)
class RunLog:
    """The metrics of one run.

    Attributes:
      name: how the run is called in the report.
      lines: of metrics.jsonl, in order.
      torn: lines that could not be read.
      experiment: the resolved experiment, {} if the directory has none.
      results: what it scored on tasks.
    """

    name: str
    lines: list[dict]
    torn: int
    experiment: dict
    results: list[Result] = field(default_factory=list)

    def series(self, key: str, kind: str = "train") -> tuple[list[int], list[float]]:
        """(steps, values) of one metric; "nan" and "inf" are read back as numbers."""
        found = [line for line in self.lines if line["kind"] == kind and key in line]
        return [line["step"] for line in found], [float(line[key]) for line in found]

    @property
    def evaluated(self) -> list[str]:
        """Names of the held-out metrics."""
        names = [name for line in self.lines if line["kind"] == "eval" for name in line]
        return [name for name in dict.fromkeys(names) if name not in ("step", "kind", "time")]

    @property
    def held_out(self) -> str:
        """The held-out metric to draw: the loss, or else the objective's first term."""
        return "loss" if "loss" in self.evaluated else [*self.evaluated, "loss"][0]


def read_run(directory: Path, name: str) -> RunLog:
    """Read a run directory.

    Raises:
      MissingInput: there is no such directory, or no metrics in it.
      DataError: the metrics hold no complete line, or a result of an evaluation is damaged.
    """
    path = directory / FILE
    if not directory.is_dir():
        raise MissingInput(f"{directory}: there is no such run directory")
    if not path.is_file():
        raise MissingInput(f"{directory}: no {FILE} there; is it a run directory?")
    lines, torn = read_lines(path)
    if not lines:
        raise DataError(f"{path} has no complete line yet")
    described = directory / "experiment.json"
    try:
        experiment = json.loads(described.read_bytes()) if described.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{described} is not readable JSON: {error}") from None
    if not isinstance(experiment, dict):
        raise DataError(f"{described} is not a JSON object")
    return RunLog(name, lines, torn, experiment, read_results(directory))


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS, words=True)
    if arguments["--help"]:
        print(help_page("flaxlm.report", "Draw the curves of runs.", FLAGS, words="RUN [RUN ...]"))
        return None
    if not arguments.words:
        raise ConfigError("which runs? python -m flaxlm.report RUN [RUN ...]")
    paths = [Path(word) for word in dict.fromkeys(arguments.words)]
    runs = [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    for run in runs:
        if run.torn:
            print(f"{run.name}: {run.torn} line(s) of {FILE} were cut in half and are left out")
    prefix = arguments["--out"] or (str(paths[0] / "report") if len(paths) == 1 else "report")
    png, page, notes = (Path(f"{prefix}.{suffix}") for suffix in ("png", "html", "md"))
    check_metric(runs, arguments["--metric"])
    picture = draw(runs, metric=arguments["--metric"] or "")
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(picture)
        page.write_text(make_page(runs, picture), encoding="utf-8")
        notes.write_text(make_notes(runs, png.name), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{prefix}: {error.strerror}") from error
    print(f"wrote {png}, {page} and {notes}")
    return None


def check_metric(runs: list[RunLog], metric: str | None) -> None:
    """Refuse a held-out metric that a run does not have.

    Raises:
      ConfigError: naming what it has.
    """
    for run in runs:
        if metric and metric not in run.evaluated:
            known = ", ".join(run.evaluated) or "no held-out metric"
            raise ConfigError(f"--metric {metric}: {run.name} has {known}")


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


# Rows of the table: name, training metric, how its series becomes one number, how that is written.
_LAST = lambda values: values[-1]
_ROWS = (
    ("training loss, last", "loss", _LAST, "{:.4f}".format),
    ("learning rate, last", "lr", _LAST, "{:.3g}".format),
    ("gradient norm, median", "grad_norm", statistics.median, "{:.3g}".format),
    ("tokens / s, median", "tokens_per_second", statistics.median, format_count),
    ("MFU, median", "mfu", statistics.median, "{:.1%}".format),
    ("waiting for data, median", "data_wait", statistics.median, "{:.1%}".format),
)


def final_values(run: RunLog) -> dict[str, str]:
    """{row name: text} of the table; a metric the run never wrote is left out."""
    last, first = run.lines[-1], run.lines[0]
    planned = run.experiment["run"]["steps"] if "run" in run.experiment else "?"
    table = {"steps": f"{last['step']} of {planned}"}
    if "time" in first and "time" in last:
        table["time, first to last line"] = format_seconds(last["time"] - first["time"])
    ledgers = [line for line in run.lines if line["kind"] == goodput.KIND]
    if ledgers and (found := goodput.shares(ledgers[-1])):
        table["goodput"] = f"{found['steps']:.1%}"
        table["wall time beside steps"] = goodput.others(ledgers[-1])
    for name in run.evaluated:
        values = run.series(name, "eval")[1]
        table[f"held-out {name}, last"] = f"{values[-1]:.4f}"
        best = max if name == "gain" or name.endswith("accuracy") else min
        table[f"held-out {name}, best"] = f"{best(values):.4f}"
    for name, key, reduce, write in _ROWS:
        values = run.series(key)[1]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            table[name] = write(values[-1] if reduce is _LAST else reduce(finite))
        if len(finite) < len(values):
            table[f"{name.partition(',')[0]}, not finite"] = f"{len(values) - len(finite)} times"
    return table


def differences(runs: list[RunLog]) -> dict[str, list[str]]:
    """{path: value in every run} of what the runs' experiments do not agree in."""
    from flaxlm.overrides import ABSENT, flatten

    leaves = [flatten(run.experiment) for run in runs]
    paths = dict.fromkeys(path for found in leaves for path in found)
    rows = {path: [_shown(found.get(path, ABSENT)) for found in leaves] for path in paths}
    return {path: row for path, row in rows.items() if len(set(row)) > 1}


def _shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
img { width: 100%; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top }
th, td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd }
thead th { border-bottom: 2px solid #222 }
tbody th { font-weight: normal; color: #555 }
.note { color: #a33 }
"""


def make_page(runs: list[RunLog], picture: bytes) -> str:
    """The HTML page, complete in itself."""
    title = ", ".join(run.name for run in runs)
    values = [final_values(run) for run in runs]
    rows = dict.fromkeys(name for table in values for name in table)
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for run in runs:
        if run.torn:
            note = f"{run.name}: {run.torn} line(s) of {FILE} were cut in half and are left out."
            parts.append(f'<p class="note">{html.escape(note)}</p>')
    code = base64.b64encode(picture).decode("ascii")
    parts.append(
        f'<img alt="loss, learning rate, gradient norm and speed of {html.escape(title)}" '
        f'src="data:image/png;base64,{code}">'
    )
    parts.append("<h2>Final values</h2>")
    cells = {name: [table[name] if name in table else "" for table in values] for name in rows}
    parts.append(_table([run.name for run in runs], cells))
    scored = task_rows([run.results for run in runs])
    if scored:
        parts.append("<h2>Tasks</h2>")
        head = ["metric", "baseline", *(run.name for run in runs)]
        parts.append(_table(head, {task: cells for task, *cells in scored}))
    described = [run for run in runs if run.experiment]
    if len(runs) > 1 and len(described) == len(runs):
        parts.append("<h2>Where the experiments differ</h2>")
        found = differences(runs)
        names = [run.name for run in runs]
        parts.append(_table(names, found) if found else "<p>Nowhere.</p>")
    for run in described:
        text = html.escape(json.dumps(run.experiment, indent=2))
        name = html.escape(run.name)
        parts.append(f"<details><summary>experiment of {name}</summary><pre>{text}</pre></details>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}'
        f"</title>\n<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def make_notes(runs: list[RunLog], picture: str) -> str:
    """The Markdown: the picture by name, the last held-out values, and the scores on tasks."""
    values = [final_values(run) for run in runs]
    wanted = ("steps", "tokens / s, median", "time, first to last line", "goodput")
    names = dict.fromkeys(name for table in values for name in table)
    columns = [n for n in names if n in wanted or (n.startswith("held-out") and "last" in n)]
    shown = [name.removeprefix("held-out ").removesuffix(", last") for name in columns]
    lines = [
        f"![{', '.join(run.name for run in runs)}]({picture})",
        "",
        "| run | " + " | ".join(shown) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for run, table in zip(runs, values, strict=True):
        cells = [table[name] if name in table else "" for name in columns]
        lines.append(f"| {run.name} | " + " | ".join(cells) + " |")
    scored = task_rows([run.results for run in runs])
    if scored:
        head = ["task", "metric", "baseline", *(run.name for run in runs)]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in scored]
    return "\n".join(lines) + "\n"


def _table(names: list[str], rows: dict[str, list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    ]
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


if __name__ == "__main__":
    sys.exit(main())
