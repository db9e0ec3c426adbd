"""`python -m flaxlm.show --experiment X`: training examples as text, and the parameter table.

The examples are the first rows a run of the experiment trains on, corrupted as in that run.
"""

import shutil
import sys
import unicodedata

from flaxlm.arguments import EXPERIMENT, HELP, Flag, help_page, parse_argv
from flaxlm.errors import command

FLAGS = {
    "--experiment": EXPERIMENT,
    "-n": Flag("how many examples, 3 if not given", "N"),
    "--help": HELP,
}

_SIDE_BY_SIDE = 90  # columns from which input and target stand beside each other


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS)
    count = arguments.integer("-n", default=3)
    if arguments["--help"]:
        purpose = "Print training examples of an experiment as text, and its parameters."
        print(help_page("flaxlm.show", purpose, FLAGS))
        return None
    from flaxlm.overrides import resolve
    from flaxlm.startup import abstract_plan, parameter_table

    experiment = resolve(arguments).experiment
    plan = abstract_plan(experiment)
    columns = shutil.get_terminal_size((100, 24)).columns
    for number, example in enumerate(examples(experiment, count), 1):
        print(f"example {number}\n{beside(example.input, example.target, columns)}\n")
    print(parameter_table(plan))
    return None


def examples(experiment, count: int) -> list:
    """The first `count` examples of the run, as the objective shows them."""
    from flaxlm.data.batches import Batches
    from flaxlm.data.prepared import open_data

    objective, data = experiment.objective, experiment.data
    prepared = open_data(data)
    prepared.vocab.require(*objective.symbols)
    # A row does not depend on the rows around it, so only the first of a batch are made.
    batches = Batches(
        prepared.train,
        objective,
        prepared.vocab,
        data=data,
        seed=experiment.run.seed,
        rows=slice(count),
    )
    steps = range(-(-count // data.batch))
    shown = [objective.show(batches[step], prepared.vocab) for step in steps]
    return [example for examples in shown for example in examples][:count]


def beside(left: str, right: str, columns: int) -> str:
    """Input and target in two columns if they fit the terminal, else below each other."""
    if columns < _SIDE_BY_SIDE:
        parts = [("input", left), ("target", right)]
        return "\n".join(
            line
            for title, text in parts
            for line in (f"  {title}", *(f"    {line}" for line in wrap(text, columns - 5)))
        )
    width = (columns - 6) // 2
    lefts, rights = (["input", *wrap(left, width)], ["target", *wrap(right, width)])
    height = max(len(lefts), len(rights))
    lefts, rights = (side + [""] * (height - len(side)) for side in (lefts, rights))
    lines = zip(lefts, rights, strict=True)
    return "\n".join(f"  {a}{' ' * (width - cells(a))}  {b}".rstrip() for a, b in lines)


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` cells of a terminal; a Korean letter fills two."""
    lines, line, used = [], "", 0
    for word in printable(text).split(" "):
        size = cells(word)
        if line and used + 1 + size > width:
            lines.append(line)
            line, used = "", 0
        elif line:
            line, used = line + " ", used + 1
        for letter in word:
            if used + cells(letter) > width:  # a word longer than a line
                lines.append(line)
                line, used = "", 0
            line, used = line + letter, used + cells(letter)
    return [*lines, line]


def cells(text: str) -> int:
    """Cells that `text` fills on a terminal."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def printable(text: str, *, kept: str = "") -> str:
    """`text` without what would steer a terminal, but for the characters `kept`: a corpus and a
    model may say anything.
    """
    return "".join(x if x.isprintable() or x in kept else "\ufffd" for x in text)


if __name__ == "__main__":
    sys.exit(main())
