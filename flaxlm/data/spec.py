"""What data a run reads, as values: sources, vocabulary, lengths, global batch. Nothing here
opens a file.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Source:
    """One stream of documents.

    Attributes:
      uri: "embedded:english" (needs no download), "tfds:c4/en", "text:PATTERN" (a file is a
        document), "lines:PATTERN" (a line is one), "jsonl:PATTERN" (all three .gz and .zst too),
        "parquet:PATTERN" or "corpus:FOLDER" (prepared by `python -m flaxlm.data prepare`). A
        PATTERN is a glob.
      weight: share of the mixture, relative to the other sources' weights.
      split: of a TFDS data set or a prepared corpus.
      field: name of the text column of JSONL, parquet and TFDS sources.
    """

    uri: str
    weight: float = 1.0
    split: str = "train"
    field: str = "text"


@dataclass(frozen=True)
class Vocabulary:
    """A sentencepiece vocabulary: read from a file, or trained on the sources once and cached.

    Attributes:
      path: a sentencepiece .model file; "" trains one on the run's own sources.
      size: pieces to train, the named special symbols included, sentinels not.
      kind: "unigram" or "bpe", for training.
      coverage: share of characters that get a piece of their own, for training (0.9995 suits
        Korean).
      sentinels: how many sentinel ids (<extra_id_0> ...) stand above the pieces.
    """

    path: str = ""
    size: int = 32000
    kind: str = "unigram"
    coverage: float = 1.0
    sentinels: int = 100

    def blank(self) -> "BlankVocab":
        """Ids without text, for tracing a run whose vocabulary is not at hand."""
        return BlankVocab(self.size, self.sentinels)


class BlankVocab:
    """The ids of a vocabulary that has not been trained or read: enough to know every shape of a
    run.
    """

    pad, eos, unk, bos, cls, sep, mask = range(7)

    def __init__(self, pieces: int, sentinels: int):
        self.pieces = pieces
        self.size = pieces + sentinels
        self.sentinels = np.arange(self.size - 1, pieces - 1, -1, dtype=np.int32)


@dataclass(frozen=True)
class Data:
    """Sources, vocabulary, row length and global batch.

    Attributes:
      sources: mixed by their weights.
      vocabulary: see `Vocabulary`.
      batch: rows of the global batch, over all hosts and micro-batches.
      length: positions of the longest input feature.
      held_out: sources of the evaluation; () keeps `held_out_share` of the documents of `sources`
        out of training.
      held_out_share: share of documents held out where `held_out` is ().
      packing: "stream" (documents concatenated and cut into rows, as T5 and GPT do), "pack" (whole
        pieces of documents packed best-fit into rows) or "split" (one piece of one document per
        row, padded).
    """

    sources: tuple[Source, ...]
    batch: int
    length: int
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    held_out: tuple[Source, ...] = ()
    held_out_share: float = 0.01
    packing: str = "stream"
