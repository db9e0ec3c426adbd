"""`python -m flaxlm.compile --experiment X --topology v5p:4x4x4`: will it fit, from a laptop.

Compiles the real train step for a slice that need not be there (`flaxlm.aot`) and reports memory,
collectives and an estimate of the time. If it does not fit, changes are compiled until three that
do are found.
"""

import json
import sys
from pathlib import Path

from flaxlm.arguments import EXPERIMENT, HELP, Flag, help_page, parse_argv
from flaxlm.errors import command

FLAGS = {
    "--experiment": EXPERIMENT,
    "--topology": Flag("what to compile for: v5p:4x4x4, v5e-256, h100:4x8", "T"),
    "--slices": Flag(
        "how many such slices, joined by the data-centre network; 1 if not given", "N"
    ),
    "--search": Flag("compile other meshes and remat policies too, and rank them"),
    "--out": Flag("the JSON file; runs/compiled/X.T.json if not given", "FILE"),
    "--list": Flag("list the chips"),
    "--help": HELP,
}

DOES_NOT_FIT = 1  # exit code


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code: 0 if it fits, 1 if it does not."""
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        purpose = "Compile an experiment's train step for a slice: memory, collectives, estimates."
        print(help_page("flaxlm.compile", purpose, FLAGS))
        return None
    from flaxlm.aot import devices, topologies

    if arguments["--list"]:
        print(topologies.listing())
        return None
    topology = topologies.parse(
        arguments["--topology"], slices=arguments.integer("--slices", default=1)
    )
    devices.prepare_environment(topology)  # before jax is imported

    from flaxlm.aot import report, search
    from flaxlm.aot.fit import compile_step, largest, place
    from flaxlm.overrides import resolve

    loaded = resolve(arguments)
    experiment = place(loaded.experiment, topology)
    target = devices.target(topology)
    found = {"experiment": loaded.name, "overrides": dict(arguments.overrides)}
    found |= identity(experiment, topology)
    if arguments["--search"]:
        ranked = search.search(experiment, target, say=say)
        print(search.ranking(ranked))
        found["search"] = [trial.as_json() for trial in ranked]
        fits = any(trial.fit.fits for trial in ranked)
    else:
        phases = compile_step(experiment, target)
        fits = all(fit.fits for fit in phases)
        worst = largest(phases)
        print(f"{'experiment':>10}  {loaded.name}")
        print("\n\n".join(report.as_text(fit, target) for fit in phases), flush=True)
        found |= {"fits": fits, "phases": [report.as_json(fit) for fit in phases]}
        if not fits:
            trials = search.suggestions(experiment, target, worst, say=say)
            print(search.advice(trials))
            found["changes_that_fit"] = [trial.as_json() for trial in trials]
    print(f"\n{report.ASSUMES}")
    name = "".join(
        letter if letter.isalnum() or letter in "-_x" else "-" for letter in topology.name
    )
    file = Path(arguments["--out"] or f"runs/compiled/{loaded.name}.{name}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"all numbers: {file}")
    return None if fits else DOES_NOT_FIT


def identity(experiment, topology) -> dict:
    """What a result depends on, as JSON values: experiment, topology, compiler."""
    from importlib import metadata

    from flaxlm.overrides import to_json

    compiler = "libtpu" if topology.is_tpu else "jaxlib"
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "software": {name: metadata.version(name) for name in ("jax", compiler)},
        "declaration": to_json(experiment),
    }


def say(line: str) -> None:
    """Progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
