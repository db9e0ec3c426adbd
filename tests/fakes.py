"""A corpus in memory and a vocabulary without text, for tests that need numbers and no files."""

import hashlib

import numpy as np

from flaxlm.data.spec import Vocabulary

VOCAB = Vocabulary(size=1000, sentinels=100).blank()


class FakeCorpus:
    """Documents given as tokens, or as sizes to fill with random ids.

    `starts` of the sentences of each document; without them there is one every 5 tokens.
    """

    def __init__(self, documents, *, seed: int = 0, starts=None):
        random = np.random.default_rng(seed)
        self.texts = [
            random.integers(10, VOCAB.pieces, d, dtype=np.int32)
            if isinstance(d, (int, np.integer))
            else np.asarray(d, np.int32)
            for d in documents
        ]
        self.offsets = np.cumsum([0, *map(len, self.texts)], dtype=np.int64)
        if starts is None:
            starts = [range(0, len(text), 5) for text in self.texts]
        self.starts = [np.asarray(s, np.int32) for s in starts]
        begins = [s + begin for s, begin in zip(self.starts, self.offsets, strict=False)]
        self.sentence_offsets = np.concatenate([*begins, self.offsets[-1:]])
        self.documents = len(self.texts)
        self.tokens = int(self.offsets[-1])
        self.fingerprint = hashlib.sha256(b"".join(t.tobytes() for t in self.texts)).hexdigest()

    def read(self, ids):
        return [(self.texts[i], self.starts[i]) for i in np.asarray(ids).tolist()]
