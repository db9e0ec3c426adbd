"""A corpus in memory and a vocabulary without text, for tests that need numbers and no files."""

import hashlib

import numpy as np

from flaxlm.data.spec import Vocabulary

VOCAB = Vocabulary(size=1000, sentinels=100).blank()


class FakeCorpus:
    """Documents given as tokens, or as sizes to fill with random ids; a sentence every 5 tokens."""

    def __init__(self, documents, *, seed: int = 0):
        random = np.random.default_rng(seed)
        self.texts = [
            random.integers(10, VOCAB.pieces, d, dtype=np.int32)
            if isinstance(d, (int, np.integer))
            else np.asarray(d, np.int32)
            for d in documents
        ]
        self.offsets = np.cumsum([0, *map(len, self.texts)], dtype=np.int64)
        self.documents = len(self.texts)
        self.tokens = int(self.offsets[-1])
        self.fingerprint = hashlib.sha256(b"".join(t.tobytes() for t in self.texts)).hexdigest()

    def read(self, ids):
        return [
            (self.texts[i], np.arange(0, len(self.texts[i]), 5, dtype=np.int32))
            for i in np.asarray(ids).tolist()
        ]
