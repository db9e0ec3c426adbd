"""Vocabularies for tests, trained once per process on text that every Python has."""

import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from flaxlm.data.spec import Vocabulary
from flaxlm.data.vocab import Vocab, train_vocab

TEXTS = [text for _, text in sorted(topics.items())[:30]]
SIZE = 700
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "in", ",", "é", "e"]
_made: dict[tuple, Vocab] = {}


def made(kind: str, **settings) -> Vocab:
    """A vocabulary of `SIZE` pieces."""
    key = (kind, *settings.items())
    if key not in _made:
        _made[key] = train_vocab(TEXTS, Vocabulary(size=SIZE, kind=kind, **settings))
    return _made[key]


def sample_data(*parts: str) -> Path:
    """A file of the sample data; the test is skipped where it is not there."""
    root = os.environ.get("FLAXLM_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data"
    path = Path(root).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no sample data: FLAXLM_TEST_DATA has no {'/'.join(parts)}")
    return path
