"""Vocabularies behind one interface, `Vocab`: read from files of any kind, or trained.

`flaxlm.data.vocab_base` says what a vocabulary offers, `sentencepiece_vocab`, `wordpiece` and
`byte_bpe` are the kinds, `vocab_files` the formats, `vocab_train` the training.
"""

import os
from pathlib import Path

from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab_base import SPECIAL, Vocab
from flaxlm.data.vocab_files import read_vocab
from flaxlm.data.vocab_train import train_vocab

__all__ = ["KOREAN", "SPECIAL", "Vocab", "load_vocab", "train_vocab"]

# Suits Korean: 11,172 syllables, of which text uses some 2,000, and Chinese characters that byte
# fallback catches.
KOREAN = Vocabulary(size=32000, kind="unigram", coverage=0.9995)


def load_vocab(path: str | os.PathLike, *, sentinels: int = 100, lowercase: bool = False) -> Vocab:
    """Read a vocabulary, whatever its kind.

    Args:
      path: a sentencepiece .model; a vocab.txt (WordPiece); a vocab.json or encoder.json, its
        merges beside it; a tokenizer.json with WordPiece or BPE inside; what
        `python -m flaxlm.data vocab` wrote; or a folder that holds one of these, with the
        lower-casing that its tokenizer_config.json asks for.
      sentinels: how many ids to put above the pieces of a sentencepiece model.
      lowercase: lower-case the text and drop accents first, where the file leaves it open.

    Raises:
      MissingInput: there is no such file.
      DataError: it is not a vocabulary, or one that is damaged or not supported; the line of a text
        file is named.
      ConfigError: `lowercase` contradicts the file.
    """
    path = Path(os.path.expanduser(path))
    return read_vocab(path, sentinels=sentinels, lowercase=lowercase)
