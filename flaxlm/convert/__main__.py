"""`python -m flaxlm.convert --from-hf DIR --to RUN` and `--run RUN --to-hf DIR`.

Every conversion reads back what it wrote, compares all of it and runs both models on a random
batch. What is written appears under its name only when that has passed.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from flaxlm.arguments import HELP, Flag, help_page, parse_argv
from flaxlm.errors import ConfigError, RunDirError, StorageError, command

_FLAGS = {
    "--from-hf": Flag("a Hugging Face folder: config.json and safetensors", "DIR"),
    "--to": Flag("the run directory to make of it", "RUN"),
    "--run": Flag("a run directory, trained or converted", "RUN"),
    "--to-hf": Flag("the Hugging Face folder to make of it", "DIR"),
    "--part": Flag("with --to-hf: which of its nets, where a model is several", "NAME"),
    "--help": HELP,
}


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, _FLAGS)
    if arguments["--help"]:
        print(help_page("flaxlm.convert", __doc__.partition("\n\n")[2].strip(), _FLAGS))
        return None
    given = {flag: arguments[flag] for flag in _FLAGS if arguments[flag]}
    if set(given) == {"--from-hf", "--to"}:
        _whole(given["--to"], lambda folder: from_hf(Path(given["--from-hf"]), folder))
    elif set(given) - {"--part"} == {"--run", "--to-hf"}:
        part = arguments["--part"]
        _whole(given["--to-hf"], lambda folder: to_hf(Path(given["--run"]), folder, part=part))
    else:
        raise ConfigError("give --from-hf DIR --to RUN, or --run RUN --to-hf DIR [--part NAME]")
    return None


def from_hf(source: Path, folder: Path) -> None:
    """Write the run directory `folder` from a Hugging Face folder, and check it.

    Raises:
      StorageError: what was read back is not what was written.
    """
    from flaxlm.convert.check import check_same, largest_difference
    from flaxlm.weights import MODEL, read_weights, write_run

    for name in (MODEL, "experiment.json"):
        if (source / name).exists():
            raise ConfigError(f"{source} is a run directory: --run RUN --to-hf DIR")
    found = read_weights(source)
    _say(f"read {source}: {_described(found.model, found.params)}")
    write_run(folder, found.model, found.params, found.vocab)
    again = read_weights(folder)
    check_same(found.params, again.params, where=str(folder))
    same = _compare_tensors(source, again)
    difference = largest_difference((found.model, found.params), (again.model, again.params))
    _say(f"read back: {same} tensors equal to the source bit for bit")
    _say(f"largest difference of any output on a random batch: {difference:g}")
    if difference:
        raise StorageError(f"{folder}: the model read back computes other outputs")
    if found.vocab is None:
        _say("no vocabulary: the model takes ids")
    else:
        _say(f"vocabulary: {found.vocab.kind}, {found.vocab.size} ids")


def to_hf(source: Path, folder: Path, *, part: str = "") -> None:
    """Write the Hugging Face folder `folder` from a run, and check it.

    Args:
      part: which net of a model that is several; "" where there is one.

    Raises:
      ConfigError: there is no such part, naming those there are.
      StorageError: what was read back is not what was written.
    """
    from flaxlm.convert import table
    from flaxlm.convert.check import check_same, largest_difference
    from flaxlm.convert.families import family_of_model, parts_of
    from flaxlm.convert.folder import read_folder, write_folder
    from flaxlm.convert.tokenizer import write_tokenizer
    from flaxlm.weights import read_weights

    found = read_weights(source)
    where = f" at step {found.step}" if found.step else ""
    parts = parts_of(found.model, found.params)
    if part not in parts and (part or len(parts) > 1):
        raise ConfigError(f"{source} has the parts {', '.join(parts)}: --part NAME")
    trained, params = parts[part] if part in parts else next(iter(parts.values()))
    _say(f"read {source}{where}: {_described(trained, params)}")
    write_folder(folder, trained, params, found.vocab)
    model, again = read_folder(folder)
    entries = family_of_model(model).table(model)
    # Rows that pad the vocabulary are not written; all else must be the same.
    tensors = table.write(entries, params)
    check_same(table.read(entries, tensors), again, where=str(folder))
    # Of a model that is trained in another form than it is used, the one that is used.
    original = trained if type(trained) is type(model) else model
    difference = largest_difference((original, params), (model, again))
    _say(f"read back: {len(tensors)} tensors equal bit for bit")
    _say(f"largest difference of any output on a random batch: {difference:g}")
    if difference:
        raise StorageError(f"{folder}: the model read back computes other outputs")
    if found.vocab is None:
        _say(f"{source} has no vocabulary: no tokenizer files")
        return
    template = family_of_model(model).TOKENIZER
    longest = getattr(model, "longest", None)
    write_tokenizer(folder, found.vocab, template, longest=longest)
    _say(_compare_tokenizer(folder, found.vocab, template))


def _compare_tensors(source: Path, again) -> int:
    """The number of tensors of a folder that a model gives back, bit for bit."""
    import numpy as np

    from flaxlm import safetensors
    from flaxlm.convert import table
    from flaxlm.convert.check import check_same
    from flaxlm.convert.families import family_of_model

    family = family_of_model(again.model)
    entries = family.table(again.model)
    theirs, ours = safetensors.read_folder(source), table.write(entries, again.params)
    # What is the sum of two tensors there is one parameter here.
    sums = {name for entry in entries if entry.plus for name in (*entry.names(), entry.plus)}
    found = {name: family.PREFIX + name for name in theirs if family.PREFIX + name in ours}
    found |= {name: name for name in theirs if name in ours}
    found = {name: full for name, full in found.items() if full not in sums}
    expected = {name: np.asarray(theirs[name], np.float32) for name in found}
    written = {name: ours[full] for name, full in found.items()}
    check_same(expected, written, where=str(again.path))
    return len(found)


def _compare_tokenizer(folder: Path, vocab, template) -> str:
    """One line: on how many lines of text the tokenizer that was written gives our ids."""
    from tokenizers import Tokenizer

    from flaxlm.convert.tokenizer import sentinels_of
    from flaxlm.data import english
    from flaxlm.data.vocab import load_vocab

    again = load_vocab(folder, sentinels=sentinels_of(folder, template))
    if again.model != vocab.model or again.size != vocab.size:
        raise StorageError(f"{folder}: the vocabulary was read back as another one")
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = [line for text in english.documents()[:20] for line in text.splitlines() if line][:400]
    differ = [
        line
        for line in lines
        if theirs.encode(line).ids != template.around(vocab, vocab.encode(line))[0].tolist()
    ]
    first = f"; the first that differs: {differ[0][:60]!r}" if differ else ""
    return f"tokenizer.json: our ids on {len(lines) - len(differ)} of {len(lines)} lines{first}"


def _whole(target: str, make: Callable[[Path], None]) -> None:
    """Make a folder under another name and rename it when `make` has passed."""
    folder = Path(os.path.expanduser(target)).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirError(f"{folder} exists and is not empty; choose another, or move it away")
    work = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        make(work)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _say(f"wrote {folder}")


def _described(model, params) -> str:
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    name = f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"
    activation = getattr(getattr(model, "activation", None), "__name__", "")
    return ", ".join(filter(None, [name, activation, f"{count:,} parameters"]))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
