"""`python -m flaxlm.steer --run RUN --prompt TEXT --bags space.txt`: let a model go on from a text,
led to words or to a class.
"""

from flaxlm.arguments import HELP, Arguments, Flag, help_page, parse_argv
from flaxlm.errors import ConfigError, command

_NUMBERS = {
    "step": (float, Flag("size of a step against the gradient, 0.02", "X")),
    "iterations": (int, Flag("steps for every token, 3", "N")),
    "gamma": (float, Flag("power of the norm that gradients are divided by, 1.5", "X")),
    "fusion": (float, Flag("share of the led model in the mean of both, 0.9", "X")),
    "kl": (float, Flag("weight of the divergence from the model as it is, 0.01", "X")),
    "window": (int, Flag("move what belongs to so many last tokens; 0: to all", "N")),
    "until": (int, Flag("new tokens after which nothing is moved; 0: never", "N")),
    "temperature": (float, Flag("of the led distribution, 1", "T")),
    "top_k": (int, Flag("draw among so many tokens, 10", "K")),
}
FLAGS = {
    "--run": Flag("a run directory or a Hugging Face folder, decoder-only", "RUN"),
    "--prompt": Flag("the text to go on from; empty if not given", "TEXT"),
    "--bags": Flag("files of words, one on a line: space.txt,science.txt", "FILES"),
    "--heads": Flag("safetensors with a class each: sentiment.safetensors:2", "FILES"),
    "--tokens": Flag("new tokens, 40 if not given", "N"),
    "--samples": Flag("so many texts, 1 if not given", "N"),
    "--seed": Flag("of the draws, 0 if not given", "N"),
    **{f"--{name.replace('_', '-')}": flag for name, (_, flag) in _NUMBERS.items()},
    "--help": HELP,
}


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        purpose = "Let a trained model go on from a text, led to words or to a class."
        print(help_page("flaxlm.steer", purpose, FLAGS, words="--run RUN --bags FILES [...]"))
        return None
    if not arguments["--run"]:
        raise ConfigError("--run is missing: --run RUN --bags FILES")
    if not (arguments["--bags"] or arguments["--heads"]):
        raise ConfigError("nothing to lead to: --bags FILES or --heads FILES")
    import flaxlm
    from flaxlm.steer import Bag, Head, Steering, steered

    lm = flaxlm.load(arguments["--run"])
    attributes = [Bag.read(lm.vocab, path) for path in _listed(arguments["--bags"])]
    attributes += [Head.read(*_labelled(text)) for text in _listed(arguments["--heads"])]
    numbers = {name: _number(arguments, name) for name in _NUMBERS}
    steering = Steering(**{name: value for name, value in numbers.items() if value is not None})
    count = arguments.integer("--samples", default=1)
    seed = arguments.integer("--seed", default=1) if arguments["--seed"] not in ("", "0") else 0
    answers = steered(
        lm,
        [arguments["--prompt"]] * count,
        attributes,
        steering,
        tokens=arguments.integer("--tokens", default=40),
        seed=seed,
    )
    for answer in answers:
        print(arguments["--prompt"] + answer.text)
    return None


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _labelled(text: str) -> tuple[str, int]:
    path, _, label = text.rpartition(":")
    if not path or not label.isdecimal():
        raise ConfigError(f"--heads {text}: expected FILE:CLASS, sentiment.safetensors:2")
    return path, int(label)


def _number(arguments: Arguments, name: str) -> float | None:
    flag, kind = f"--{name.replace('_', '-')}", _NUMBERS[name][0]
    try:
        return kind(arguments[flag]) if arguments[flag] else None
    except ValueError:
        raise ConfigError(f"{flag} {arguments[flag]}: expected a number") from None


if __name__ == "__main__":
    from flaxlm import host

    host.use_huge_pages()
    host.finish(main)
