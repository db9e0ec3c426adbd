"""`python -m flaxlm.look attention --run RUN --text TEXT` and `... loss --run RUN --text FILE`:
what a model does with a text, as an HTML page.
"""

from pathlib import Path

from flaxlm.arguments import HELP, Arguments, Flag, help_page, parse_argv
from flaxlm.errors import ConfigError, DataError, MissingInput, StorageError, command

FLAGS = {
    "--run": Flag("a run directory or a Hugging Face folder", "RUN"),
    "--text": Flag("attention: the text itself; loss: a file with it", "TEXT"),
    "--pair": Flag("attention: a second text, for models that read two", "TEXT"),
    "--target": Flag("attention: what a decoder says, for models with an encoder", "TEXT"),
    "--context": Flag("loss: what an encoder reads before the decoder says the text", "TEXT"),
    "--out": Flag("the page; attention.html or loss.html if not given", "FILE"),
    "--help": HELP,
}
_OWN = {"attention": ("--pair", "--target"), "loss": ("--context",)}


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, FLAGS, words=True)
    if arguments["--help"]:
        purpose = "Who attends to whom in a text, or what every token of it costs, as HTML."
        usage = "attention|loss --run RUN --text TEXT [...]"
        print(help_page("flaxlm.look", purpose, FLAGS, words=usage))
        return None
    kind = _checked(arguments)
    text = arguments["--text"] if kind == "attention" else _read(Path(arguments["--text"]))
    import flaxlm
    from flaxlm import look

    lm = flaxlm.load(arguments["--run"])
    title = f"{kind} of {Path(arguments['--run']).name}"
    if kind == "attention":
        maps = look.attention(lm, text, pair=arguments["--pair"], target=arguments["--target"])
        page = look.attention_page(maps, title=title)
    else:
        page = look.loss_page(look.losses(lm, text, context=arguments["--context"]), title=title)
    path = Path(arguments["--out"] or f"{kind}.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    print(f"wrote {path}, {len(page.encode()):,} bytes")
    return None


def _checked(arguments: Arguments) -> str:
    """What to look at."""
    if len(arguments.words) != 1 or arguments.words[0] not in _OWN:
        raise ConfigError("look at what? python -m flaxlm.look attention|loss --run RUN --text ...")
    (kind,) = arguments.words
    for flag in ("--run", "--text"):
        if not arguments[flag]:
            raise ConfigError(f"{flag} is missing: {kind} --run RUN --text ...")
    for other, own in _OWN.items():
        for flag in own:
            if other != kind and arguments[flag]:
                raise ConfigError(f"{flag} belongs to {other}, not to {kind}")
    return kind


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"--text {path}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise DataError(f"--text {path}: no UTF-8 ({error})") from None


if __name__ == "__main__":
    from flaxlm import host

    host.use_huge_pages()
    host.finish(main)
