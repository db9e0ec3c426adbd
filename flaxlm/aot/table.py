"""`python -m flaxlm.aot.table`: every published experiment, compiled for the slices that its file
names and written into docs/scale.md.

A result is kept as JSON, one file per experiment, and compiled again only if the experiment, its
slice or the compiler has changed; so an interrupted run goes on where it was. After a change of the
library itself, start with --fresh.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from flaxlm.aot import devices, topologies
from flaxlm.aot.topologies import Topology
from flaxlm.arguments import EXPERIMENT, HELP, Flag, help_page, parse_argv
from flaxlm.compile import identity, say
from flaxlm.errors import ConfigError, MissingInput, command

FLAGS = {
    "--out": Flag("the page whose table is replaced; docs/scale.md if not given", "FILE"),
    "--cache": Flag("folder of the results; runs/compiled/table if not given", "FOLDER"),
    "--only": Flag("compile these alone: bert_base,gpt2; the others come from the cache", "NAMES"),
    "--fresh": Flag("compile again what the cache has"),
    "--help": HELP,
}

# The page holds the table between these lines.
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

# "Slice" is what the mesh is for; "Wider" is another slice, and what to add to the command for it.
_SLICE = re.compile(
    r"^(?:Slice|Wider)\s+(?:([0-9]+) x )?([a-z0-9]+:[0-9x]+) \(([0-9]+) chips\)(?:: (--.+)$)?",
    re.MULTILINE,
)
_HEAD = (
    "experiment", "slice", "chips", "mesh", "batch", "HBM: arguments + temporaries", "of",
    "collectives per step", "est. step", "est. MFU",
)  # fmt: skip
_GIB = 2**30


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code: 0 if all fit, 1 if one does not."""
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        purpose = "Compile every published experiment for its slice and write the table."
        print(help_page("flaxlm.aot.table", purpose, FLAGS))
        return None
    page = Path(arguments["--out"] or "docs/scale.md")
    if not page.is_file() or BEGIN not in page.read_text() or END not in page.read_text():
        raise MissingInput(f"--out {page}: expected a page with the lines {BEGIN} and {END}")
    devices.prepare_environment(topologies.parse("v5p:4x4x4"))  # before jax is imported
    devices.check_installed(topologies.parse("v5p:4x4x4"))
    from flaxlm.experiment import load, names

    cache = Path(arguments["--cache"] or "runs/compiled/table")
    cache.mkdir(parents=True, exist_ok=True)
    published = {name: found for name in names() if (found := slices_of(load(name).doc))}
    chosen = arguments["--only"].split(",") if arguments["--only"] else list(published)
    for name in chosen:
        if name not in published:
            raise ConfigError(f"--only {name}: no published experiment with a slice has that name")
    results = {}
    for name, slices in published.items():
        for topology, added in slices:
            compiles = name in chosen
            fresh = arguments["--fresh"]
            found = result(name, topology, cache, added=added, compiles=compiles, fresh=fresh)
            if found:
                results[name, topology] = found
                say(f"{name}: {summary(found)}")
                write(page, list(results.values()))
    return None if all(found["fits"] for found in results.values()) else 1


def slices_of(doc: str) -> list[tuple[Topology, str]]:
    """The slices that an experiment's docstring names, each with what it adds to the command.

    Raises:
      ConfigError: the chips of a line do not agree.
    """
    found = []
    for match in _SLICE.finditer(doc):
        slices, name, chips, added = match.groups()
        topology = topologies.parse(name, slices=int(slices or 1))
        if topology.chips != int(chips):
            raise ConfigError(f"{match[0]}: {topology} has {topology.chips} chips")
        found.append((topology, added or ""))
    return found


def result(
    name: str,
    topology: Topology,
    cache: Path,
    *,
    added: str = "",
    compiles: bool = True,
    fresh: bool = False,
) -> dict[str, Any] | None:
    """The numbers of one experiment on one slice, from the cache or compiled; None: neither."""
    import jax

    from flaxlm.aot import report
    from flaxlm.aot.fit import compile_step, largest, place
    from flaxlm.overrides import resolve

    file = cache / f"{name}.{topology.chips}.json"
    arguments = parse_argv(["--experiment", name, *added.split()], {"--experiment": EXPERIMENT})
    experiment = place(resolve(arguments).experiment, topology)
    now = identity(experiment, topology)
    if file.is_file() and not (fresh and compiles):
        kept = json.loads(file.read_text())
        if all(kept[key] == value for key, value in json.loads(json.dumps(now)).items()):
            return kept
    if not compiles:
        return None
    say(f"{name} on {topology}: compiling")
    phases = compile_step(experiment, devices.target(topology))
    jax.clear_caches()  # the next experiment shares nothing with this one
    found = now | {
        "experiment": name,
        "chips": topology.chips,
        "fits": all(fit.fits for fit in phases),
        "phases": [report.as_json(fit) for fit in phases],
        "largest": phases.index(largest(phases)),
    }
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(file)
    return found


def summary(found: dict[str, Any]) -> str:
    """One line of a result."""
    return ", ".join(cell for cell in _row(found)[5:] if cell != "-")


def write(page: Path, results: list[dict[str, Any]]) -> None:
    """Replace the table of a page; all of it but the table stays."""
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    software = sorted({
        ", ".join(f"{name} {version}" for name, version in found["software"].items())
        for found in results
    })  # fmt: skip
    rows = [_HEAD, tuple("---" for _ in _HEAD), *map(_row, results)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    made = f"Compiled with {'; '.join(software)}."
    page.write_text(f"{head}{BEGIN}\n\n{table}\n\n{made}\n\n{END}{tail}")


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    phase = found["phases"][found["largest"]]
    mesh = " x ".join(f"{axis} {size}" for axis, size in phase["mesh"].items() if size > 1) or "1"
    hbm, priced = phase["hbm"], phase["estimate"]
    memory = hbm["compiled"]
    start = (
        *(f"`{found['experiment']}`", f"{found['topology']}"),
        f"{found['chips']}",
        mesh,
        f"{phase['rows']} x {phase['length']}",
    )
    available = f"{hbm['available'] / _GIB:.1f} GiB"
    if memory is None:
        needed = f"**does not fit: {hbm['needed'] / _GIB:.1f} GiB**"
        return (*start, needed, available, "-", "-", "-")
    used = f"{memory['arguments'] / _GIB:.2f} + {memory['temporaries'] / _GIB:.2f}"
    collectives = ", ".join(
        f"{entry['count']:,.0f} {kind} {entry['bytes'] / _GIB:.2f} GiB"
        for kind, entry in priced["collectives"].items()
    )
    return (
        *start,
        used if phase["fits"] else f"**does not fit: {used}**",
        available,
        collectives or "none",
        f"{priced['step_seconds'] * 1e3:,.0f} ms",
        f"{100 * priced['mfu']:.0f} %",
    )


if __name__ == "__main__":
    sys.exit(main())
