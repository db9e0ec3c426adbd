"""`python -m flaxlm.prompts --run RUN --task NAME[@FOLDER] --shots K`: a task put to a language
model as texts, without training.

Writes result.json and report.txt into --out DIR (RUN/prompts/NAME-SPLIT-SHOTS if it is not given).
"""

import dataclasses
import os
from pathlib import Path

from flaxlm import flags, host
from flaxlm.arguments import HELP, Arguments, Flag, help_page, parse_argv
from flaxlm.errors import ConfigError, command

FLAGS = {
    "--run": Flag("a run directory or a Hugging Face folder", "RUN"),
    "--task": Flag("the task, superglue/rte or sentences/polarity@FOLDER", "NAME"),
    "--split": Flag("to answer, or a slice of one; validation if it is not given", "NAME"),
    "--template": Flag("a name, FILE.yaml of promptsource or FILE.yaml:NAME; else all", "NAME"),
    "--shots": Flag("examples in the context, 0 if not given", "K"),
    "--shots-split": Flag("to take them from; train if it is not given", "NAME"),
    "--seeds": Flag("of their draws, 0 if not given; several as in 0,1,2", "N"),
    "--rows": Flag("candidates at a time, 16 if not given", "N"),
    "--out": Flag("the folder to write into", "DIR"),
    "--help": HELP,
}


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        print(help_page("flaxlm.prompts", __doc__.partition("\n\n")[2].strip(), FLAGS))
        return None
    for flag in ("--run", "--task"):
        if not arguments[flag]:
            raise ConfigError(f"{flag} is missing: --run RUN --task NAME[@FOLDER]")
    shots = _shots(arguments)
    seeds = _seeds(arguments, shots)
    flags.use()
    print(_evaluated(arguments, shots, seeds, rows=arguments.integer("--rows", default=16)))
    return None


def _evaluated(arguments: Arguments, shots: int, seeds: list[int], *, rows: int) -> str:
    import flaxlm
    from flaxlm.prompts.evaluate import scored, table
    from flaxlm.results import folder_of, write_result
    from flaxlm.tasks.base import find

    run, split = Path(arguments["--run"]), arguments["--split"] or "validation"
    name, _, folder = arguments["--task"].partition("@")
    task, folder = find(name), os.path.expanduser(folder)
    templates = _templates(task, arguments["--template"])
    lm = flaxlm.load(run)
    examples = task.read(split, folder)
    pool = task.read(arguments["--shots-split"] or "train", folder) if shots else []
    found = scored(
        lm, task, examples, templates, pool=pool, shots=shots, seeds=seeds, rows=rows
    )  # fmt: skip
    out = Path(arguments["--out"] or folder_of(run, "prompts", f"{name}-{split}-{shots}"))
    head = f"{name} {split}: {len(examples):,} examples, {shots} shots, {run}"
    report = f"{head}\n\n{table(found, main=task.main)}"
    result = {
        "task": name, "split": split, "examples": len(examples), "run": str(run), "shots": shots,
        "main": task.main, "scores": [dataclasses.asdict(one) for one in found],
    }  # fmt: skip
    return write_result(out, result, report)


def _templates(task, wanted: str) -> dict:
    """{name: template} that the flag asks for."""
    from flaxlm.prompts import builtin

    path, ending, name = wanted.partition(".yaml")
    if not ending:
        return {wanted: builtin.find(task, wanted)} if wanted else builtin.templates(task)
    if name and not name.startswith(":"):
        raise ConfigError(f"--template {wanted}: FILE.yaml or FILE.yaml:NAME")
    from flaxlm.prompts import promptsource

    found = promptsource.choose(path + ending, name[1:], task=task.name)
    return {template.name: template for template in found}


def _shots(arguments: Arguments) -> int:
    text = arguments["--shots"] or "0"
    if not text.isdecimal():
        raise ConfigError(f"--shots {text}: expected a number of examples")
    return int(text)


def _seeds(arguments: Arguments, shots: int) -> list[int]:
    """Each once."""
    text = arguments["--seeds"]
    if (text or arguments["--shots-split"]) and not shots:
        flag = "--seeds" if text else "--shots-split"
        raise ConfigError(f"{flag} is of the examples in the context: it needs --shots")
    parts = (text or "0").split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--seeds {text}: expected numbers, each once, as in 0,1,2")
    return list(map(int, parts))


if __name__ == "__main__":
    host.use_huge_pages()
    host.finish(main)
