"""A vocabulary as the tokenizer files that transformers' AutoTokenizer loads.

Written are the files of the vocabulary itself, which flaxlm reads back, and tokenizer.json, in
which every step of the tokenizer is spelt out. transformers takes that one as it is
(PreTrainedTokenizerFast); from vocabulary files alone it would build the tokenizer its own way,
which is not always the way the vocabulary was made for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxlm.convert.tokenizer_json import tokenizer_json
from flaxlm.data.files import write_whole
from flaxlm.data.vocab_base import SPECIAL, Vocab
from flaxlm.errors import DataError

_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Template:
    """What a family's tokenizer puts around a text, and what its models want to read.

    A template is words: names of special symbols ("cls"), A and B for the texts; ":1" gives a word
    the type 1.

    Attributes:
      single: around one text, "cls A sep".
      pair: around two, "cls A sep B:1 sep:1".
      inputs: what the tokenizer returns.
      start: symbol before the first token of a decoder; "": there is no decoder.
      side: where rows are padded.
      sentinels: how many sentinels a published vocabulary of this family has above its pieces.
    """

    single: str
    pair: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    start: str = ""
    side: str = "right"
    sentinels: int = 0

    def words(self, count: int) -> list[tuple[str, int]]:
        """(word, type) of the template for `count` texts."""
        parts = [word.partition(":") for word in (self.single, self.pair)[count - 1].split()]
        return [(word, int(kind or 0)) for word, _, kind in parts]

    def around(self, vocab: Vocab, *texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, types) of one row of one or two texts.

        Raises:
          ConfigError: the vocabulary lacks a symbol.
        """
        ids, types = [], []
        for word, kind in self.words(len(texts)):
            if word in ("A", "B"):
                part = texts["AB".index(word)]
            else:
                vocab.require(word)
                part = [getattr(vocab, word)]
            ids.append(np.asarray(part, np.int32))
            types.append(np.full(len(part), kind, np.int32))
        return np.concatenate(ids), np.concatenate(types)


def write_tokenizer(folder: Path, vocab: Vocab, template: Template, *, longest: int | None) -> None:
    """Write the tokenizer files of a vocabulary.

    Args:
      longest: positions of the model; None: unlimited.

    Raises:
      ConfigError: the vocabulary lacks a symbol of the template.
      StorageError: the folder cannot be written.
    """
    for name, content in vocab.files().items():
        write_whole(folder / name, content)
    names = {f"{name}_token": getattr(vocab, name) for name in SPECIAL}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: vocab.piece(at) for key, at in names.items() if at is not None},
        "model_input_names": list(template.inputs),
        "padding_side": template.side,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": vocab.lowercase,
        "extra_ids": len(vocab.sentinels),
    }
    if longest is not None:
        config["model_max_length"] = longest
    _write_json(folder / _CONFIG, config)
    _write_json(
        folder / "tokenizer.json",
        tokenizer_json(vocab, [template.words(count) for count in (1, 2)]),
    )


def has_vocab(folder: Path) -> bool:
    """Whether a folder has files that `flaxlm.data.vocab.load_vocab` reads."""
    names = {path.name for path in folder.iterdir()}
    return bool(names & {"vocab.txt", "vocab.json", "tokenizer.json"}) or any(
        name.endswith(".model") for name in names
    )


def sentinels_of(folder: Path, template: Template) -> int:
    """The number of sentinels of a folder's tokenizer: what it says, else the family's.

    Raises:
      DataError: its tokenizer_config.json is not JSON.
    """
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    count = config.get("extra_ids") if isinstance(config, dict) else None
    return count if type(count) is int and 0 <= count < 10_000 else template.sentinels


def _write_json(path: Path, value) -> None:
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
