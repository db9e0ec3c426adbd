"""The shape of a command line: flags, one experiment, dotted overrides.

    python -m flaxlm.train --experiment t5_span --dry-run --run.steps=10 --mesh.fsdp 4

A key with a dot is an override, checked later against the experiment itself (`flaxlm.overrides`);
a key without one is a flag of the command and must be known exactly. Nothing heavy is imported
here, so that a typo is refused at once.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from flaxlm.errors import ConfigError, nearest

_LONGEST = 1024  # letters of an argument


@dataclass(frozen=True)
class Flag:
    """A flag of a command: what it means, and the name of its value ("" for a switch)."""

    meaning: str
    value: str = ""


HELP = Flag("print this page")
EXPERIMENT = Flag("a name of --list, a path to a .py file, or package.module", "X")
LIST = Flag("list the experiments that ship with flaxlm")

TRAIN_FLAGS = {
    "--experiment": EXPERIMENT,
    "--list": LIST,
    "--print-config": Flag("print every value of the experiment and where it comes from"),
    "--dry-run": Flag("trace abstractly: parameters, shardings, bytes per device; no training"),
    "--help": HELP,
}


@dataclass(frozen=True)
class Arguments:
    """A command line, taken apart.

    Attributes:
      experiment: the value of --experiment, or "".
      overrides: ((dotted path, text), ...) in the order given, each path once.
      flags: every flag of the command but --experiment; a switch is True or False, a value is its
        text or "".
      words: what is no flag, for commands that take words.
    """

    experiment: str
    overrides: tuple[tuple[str, str], ...]
    flags: Mapping[str, str | bool]
    words: tuple[str, ...] = ()

    def __getitem__(self, flag: str) -> str | bool:
        return self.flags[flag]

    def integer(self, flag: str, *, default: int) -> int:
        """The value of a flag as an integer of at least 1.

        Raises:
          ConfigError: if it is none.
        """
        text = self.flags[flag]
        if text == "":
            return default
        try:
            number = int(text)
        except ValueError:
            number = 0
        if number < 1:
            raise ConfigError(f"{flag} {text}: expected an integer of at least 1")
        return number


def parse_argv(
    argv: list[str], flags: Mapping[str, Flag] = TRAIN_FLAGS, *, words: bool = False
) -> Arguments:
    """Take `argv` apart: `--key=value` or `--key value`, exact names, nothing twice.

    Overrides are taken where --experiment is among the flags, words where `words` says so.

    Raises:
      ConfigError: unknown flag, missing value, switch with a value, key given twice, stray word,
        or a word that is no line of text.
    """
    for word in argv:
        _check_text(word)
    found: dict[str, str | bool] = {}
    loose: list[str] = []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word == "-h":
            word = "--help"
        if words and not word.startswith("-"):
            loose.append(word)
            continue
        key, equals, value = word.partition("=")
        is_override = key.startswith("--") and "." in key and "--experiment" in flags
        if not is_override and key not in flags:
            raise _unknown(word, key, flags)
        if key in found:
            raise ConfigError(f"{key} is given twice")
        if not is_override and not flags[key].value:
            if equals:
                raise ConfigError(f"{key} is a switch and takes no value, got {value!r}")
            found[key] = True
            continue
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{key} needs a value: {key}=VALUE")
            value = queue.pop(0)
        found[key] = value
    return Arguments(
        experiment=found.get("--experiment", ""),
        overrides=tuple((key[2:], value) for key, value in found.items() if "." in key),
        flags={
            name: found.get(name, "" if flag.value else False)
            for name, flag in flags.items()
            if name != "--experiment"
        },
        words=tuple(loose),
    )


def _check_text(word: str) -> None:
    """Refuse what no file name, log line or message could hold: control characters, bytes that are
    no UTF-8 (Python has them as surrogates), line ends, endless text.
    """
    start = word[:80] + ("..." if len(word) > 80 else "")
    bad = [letter for letter in word if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")]
    if bad:
        raise ConfigError(f"argument {start!r}: {bad[0]!r} is no printable text in UTF-8")
    if len(word) > _LONGEST:
        raise ConfigError(f"argument {start!r}: {len(word)} letters, at most {_LONGEST} make sense")


def _unknown(word: str, key: str, flags: Mapping[str, Flag]) -> ConfigError:
    if not key.startswith("-"):
        return ConfigError(
            f"unexpected argument {word!r}: flags start with --, overrides are --a.b=value"
        )
    return ConfigError(f"unknown flag {key}: {nearest(key, flags)}")


def help_page(
    command: str, purpose: str, flags: Mapping[str, Flag] = TRAIN_FLAGS, *, words: str = ""
) -> str:
    """The page of --help. A command takes --experiment and overrides, or the positional `words`."""
    takes_experiment = "--experiment" in flags
    usage = "--experiment X [--a.b=value ...]" if takes_experiment else words
    lines = [f"usage: python -m {command} {usage}", "", purpose, ""]
    width = max(len(f"{name} {flag.value}") for name, flag in flags.items())
    lines += [f"  {f'{name} {flag.value}':{width}}  {flag.meaning}" for name, flag in flags.items()]
    if takes_experiment:
        meaning = "replace one field of the experiment, as in --model.size.depth=2"
        lines += [f"  {'--a.b=value':{width}}  {meaning}"]
    return "\n".join(lines)
