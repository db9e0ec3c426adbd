"""`python -m flaxlm.evaluate --run RUN --text FILE`: how well a language model predicts a text.

The whole file is one text, read in windows (`flaxlm.likelihood.of_texts`).
"""

import math
from pathlib import Path

from flaxlm import flags
from flaxlm.arguments import Arguments
from flaxlm.errors import ConfigError, DataError, MissingInput


def from_arguments(arguments: Arguments) -> str:
    """`evaluate_text` as the command line of flaxlm.evaluate asks for it.

    Raises:
      ConfigError: flags that do not go together; else as `evaluate_text`.
    """
    for flag in ("--task", "--split"):
        if arguments[flag]:
            raise ConfigError(f"{flag} and --text: give one of the two")
    if not arguments["--run"]:
        raise ConfigError("--run is missing: --run RUN --text FILE")
    window, stride = (arguments.integer(flag, default=0) for flag in ("--window", "--stride"))
    flags.use()
    run, file = Path(arguments["--run"]), arguments["--text"]
    folder = Path(arguments["--out"] or run / "evaluate" / Path(file).stem)
    return evaluate_text(run, file, folder, window=window, stride=stride)


def evaluate_text(run: Path, file: str, folder: Path, *, window: int, stride: int) -> str:
    """Predict a file in UTF-8 and write result.json and report.txt into `folder`.

    Returns:
      The report: tokens, words and bytes, perplexity per token and per word (words lie between
      spaces, as in lm-evaluation-harness), bits per byte.

    Raises:
      ConfigError: the model writes no texts, or the windows make no sense.
      MissingInput, DataError, StorageError: run or file cannot be read.
    """
    import flaxlm
    from flaxlm.likelihood import perplexity
    from flaxlm.results import write_result

    text = _read(file)
    lm = flaxlm.load(run)
    found = perplexity(lm, [text], window=window, stride=stride)
    words = len(text.split())
    values = {
        "tokens": found.tokens,
        "words": words,
        "bytes": found.bytes,
        "perplexity_per_token": found.per_token,
        "perplexity_per_word": math.exp(min(-found.nats / words, 700.0)),
        "bits_per_byte": found.bits_per_byte,
    }
    width = max(map(len, values))
    lines = [
        f"  {name:{width}}  {value:,}" if type(value) is int else f"  {name:{width}}  {value:,.4f}"
        for name, value in values.items()
    ]
    report = "\n".join([f"{file}, {run}", *lines])
    used = {"text": file, "run": str(run), "window": window, "stride": stride}
    return write_result(folder, used | values, report)


def _read(file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}") from None
    if not text.split():
        raise DataError(f"{file} has no words")
    return text
