"""Rows of literal sentences and a vocabulary with words of several pieces, for masked models."""

import numpy as np

from flaxlm.data.rows import Rows


class Pieces:
    """Ids 0 ... 6 are special, as of a vocabulary trained here. Of each ten ids from 10 on, the
    last three go on with a word: 17, 18, 19, 27, ... begin none.
    """

    pad, eos, unk, bos, cls, sep, mask = range(7)
    size = pieces = 500
    sentinels = np.zeros(0, np.int32)
    special = np.isin(np.arange(500), [0, 1, 3, 4, 5, 6])
    word_starts = unit_starts = (np.arange(500) < 10) | (np.arange(500) % 10 < 7)

    def encode_batch(self, texts):
        return [[int(word) for word in text.split()] for text in texts]

    encode = None

    def decode(self, ids):
        return " ".join(str(i) for i in np.asarray(ids).tolist())


VOCAB = Pieces()
PAD, CLS, SEP, MASK = VOCAB.pad, VOCAB.cls, VOCAB.sep, VOCAB.mask


def rows_of(texts, width, *, index=None, partners=()):
    """Rows from lists of sentences, each a list of ids; padded to `width`."""
    count = len(texts)
    tokens, segments = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    sentences = np.zeros((count, width), bool)
    for row, text in enumerate(texts):
        ids = [i for sentence in text for i in sentence]
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        sentences[row, np.cumsum([0, *map(len, text)])[:-1]] = True
    return Rows(
        index=np.arange(count) if index is None else np.asarray(index),
        tokens=tokens,
        segments=segments,
        positions=(np.arange(width) * segments).astype(np.int32),
        sentences=sentences,
        partners=partners,
    )


def joined(lists):
    return [item for part in lists for item in part]


def take(rows, picked):
    """The rows `picked`, partners too."""
    names = ("index", "tokens", "segments", "positions", "sentences")
    return Rows(
        *(getattr(rows, name)[picked] for name in names),
        partners=tuple(take(partner, picked) for partner in rows.partners),
    )


def random_rows(count, width, *, seed=0, least=0, partners=1):
    """Rows of random ids and lengths, sentences of about eight tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(least, width + 1, count)
    real = np.arange(width) < lengths[:, None]
    starts = (random.random((count, width)) < 0.125) & real
    starts[:, 0] = lengths > 0
    return Rows(
        index=np.arange(count),
        tokens=np.where(real, random.integers(10, VOCAB.size, real.shape), 0).astype(np.int32),
        segments=real.astype(np.int32),
        positions=(np.arange(width) * real).astype(np.int32),
        sentences=starts,
        partners=tuple(
            random_rows(count, width, seed=seed + 1 + p, least=1, partners=0)
            for p in range(partners)
        ),
    )
