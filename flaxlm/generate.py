"""`python -m flaxlm.generate --run RUN --prompt TEXT`: let a trained model go on, or fill in masks.

One prompt is answered token by token as the model finds them. Without --prompt every line of the
standard input is a prompt, and with --output the answers are written as JSON, one on a line.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from flaxlm.arguments import HELP, Arguments, Flag, help_page, parse_argv
from flaxlm.decode.settings import Settings
from flaxlm.errors import ConfigError, DataError, StorageError, command
from flaxlm.show import printable

_OF_SETTINGS = {
    "max_new_tokens": Flag("most new tokens, 64 if not given", "N"),
    "min_new_tokens": Flag("fewest new tokens", "N"),
    "sample": Flag("draw tokens instead of taking the most likely"),
    "temperature": Flag("of the draws", "T"),
    "top_k": Flag("draw among the k most likely tokens", "K"),
    "top_p": Flag("draw among the likeliest tokens of this probability", "P"),
    "typical_p": Flag("draw among the most typical tokens of this probability", "P"),
    "candidates": Flag("draw so many answers, give the most likely one", "N"),
    "repetition_penalty": Flag("weakens tokens that were there, above 1", "X"),
    "no_repeat_ngram_size": Flag("no run of so many tokens twice", "N"),
    "num_beams": Flag("hypotheses of a beam search", "N"),
    "length_penalty": Flag("power of the length that divides log-likelihoods", "X"),
    "early_stopping": Flag("of a beam search: true, false or never", "WHEN"),
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


FLAGS = {
    "--run": Flag("a run directory or a Hugging Face folder", "RUN"),
    "--prompt": Flag("the text to go on from; lines of the standard input if not given", "TEXT"),
    "--prefix": Flag("what every answer begins with", "TEXT"),
    "--fill": Flag("fill in the masks of the text: [MASK] or <mask>"),
    "--top": Flag("with --fill: how many tokens to show, 5 if not given", "N"),
    "--seed": Flag("of the draws, 0 if not given", "N"),
    "--output": Flag("write answers as JSON lines to this file", "FILE"),
    **{_flag(name): flag for name, flag in _OF_SETTINGS.items()},
    "--help": HELP,
}


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS)
    if arguments["--help"]:
        purpose = "Let a trained model go on from a text, or fill in its masks."
        usage = "--run RUN [--prompt TEXT] [...]"
        print(help_page("flaxlm.generate", purpose, FLAGS, words=usage))
        return None
    if not arguments["--run"]:
        raise ConfigError("--run RUN is missing: a run directory or a Hugging Face folder")
    settings, seed = settings_of(arguments), _number("--seed", arguments["--seed"] or "0", int)
    _check(arguments, settings)
    top = arguments.integer("--top", default=5)

    from flaxlm.lm import load

    lm = load(arguments["--run"])
    prompt, output = arguments["--prompt"], arguments["--output"]
    several = settings.num_beams > 1 or settings.candidates > 1
    if prompt and not (arguments["--fill"] or output or several):
        for piece in lm.stream(prompt, settings, prefix=arguments["--prefix"], seed=seed):
            print(_printable(piece), end="", flush=True)
        print()
        return None
    prompts = [prompt] if prompt else list(_lines(sys.stdin))
    if not prompts:
        raise DataError("no prompt: give --prompt TEXT, or lines on the standard input")
    if arguments["--fill"]:
        records = _filled(lm.fill(prompts, top=top), prompts)
    else:
        prefixes = [arguments["--prefix"]] * len(prompts)
        answers = lm.generate(prompts, settings, prefixes=prefixes, seed=seed)
        records = [
            {
                "prompt": prompt,
                "text": answer.text,
                "ids": list(answer.ids),
                "log_likelihood": answer.log_likelihood,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    if output:
        _write(Path(output), records)
        return None
    for record in records:
        print(_printable(record["text"]) if "text" in record else _shown(record))
    return None


def settings_of(arguments: Arguments) -> Settings:
    """The settings that a command line asks for.

    Raises:
      ConfigError: a value is no number, or the settings are not legal.
    """
    given = {}
    for field in dataclasses.fields(Settings):
        flag = _flag(field.name)
        text = arguments[flag]
        if text in ("", False):
            continue
        if field.name == "early_stopping":
            known = {"true": True, "false": False, "never": "never"}
            if text not in known:
                raise ConfigError(f"{flag} {text}: true, false or never")
            given[field.name] = known[text]
        else:
            given[field.name] = True if text is True else _number(flag, text, field.type)
    return Settings(**given)


def _check(arguments: Arguments, settings: Settings) -> None:
    """Refuse what would have no effect."""
    if not arguments["--fill"]:
        if arguments["--top"]:
            raise ConfigError("--top is of --fill")
        return
    if settings != Settings() or arguments["--prefix"] or arguments["--seed"]:
        raise ConfigError("--fill takes --run, --prompt, --top and --output: it draws nothing")


def _number(flag: str, text: str, kind: type) -> int | float:
    try:
        return kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ConfigError(f"{flag} {text}: expected {what}") from None


def _lines(file) -> Iterator[str]:
    try:
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 at byte {error.start}") from None


def _filled(found, prompts: list[str]) -> list[dict]:
    return [
        {"prompt": prompt, "masks": [[vars(token) for token in mask] for mask in masks]}
        for prompt, masks in zip(prompts, found, strict=True)
    ]


def _shown(record: dict) -> str:
    """One line per mask: its tokens, each with its probability."""
    lines = [
        "  ".join(f"{token['text']} {token['probability']:.3f}" for token in mask)
        for mask in record["masks"]
    ]
    return _printable("\n".join(lines))


def _write(path: Path, records: list[dict]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _printable(text: str) -> str:
    return printable(text, kept="\n\t")


if __name__ == "__main__":
    sys.exit(main())
