"""What data a run reads, as values: sources, vocabulary, lengths, global batch. Nothing here
opens a file.
"""

from dataclasses import dataclass, field

import numpy as np

from flaxlm.errors import ConfigError, nearest

KINDS = ("unigram", "bpe", "wordpiece", "bytes")


@dataclass(frozen=True)
class Source:
    """One stream of documents.

    Attributes:
      uri: "embedded:english" (needs no download), "tfds:c4/en", "text:PATTERN" (a file is a
        document), "lines:PATTERN" (a line is one), "jsonl:PATTERN" (all three .gz and .zst too),
        "parquet:PATTERN" or "corpus:FOLDER" (prepared by `python -m flaxlm.data prepare`). A
        PATTERN is a glob. "task:SUITE/NAME" or "task:SUITE/NAME@FOLDER": the examples of a task
        (`flaxlm.tasks`), by its TFDS name or from the publisher's files in FOLDER.
      weight: share of the mixture, relative to the other sources' weights.
      split: of a TFDS data set, a task or a prepared corpus.
      field: name of the text column of JSONL, parquet and TFDS sources.
      on_decode_error: what is not UTF-8 stops the preparation with its place ("error"), becomes
        U+FFFD ("replace"), or its document is left out ("skip"); the last two are counted. The
        document of "text:" is the file.
    """

    uri: str
    weight: float = 1.0
    split: str = "train"
    field: str = "text"
    on_decode_error: str = "error"


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary: read from a file, or trained on the sources once and cached.

    Attributes:
      path: what `flaxlm.data.vocab.load_vocab` reads: a sentencepiece .model, a vocab.txt, a
        vocab.json with its merges beside it, a tokenizer.json, or a folder with one of them; ""
        trains one on the run's own sources.
      size: pieces to train, the named special symbols included, sentinels not.
      kind: "unigram" or "bpe" (sentencepiece), "wordpiece", or "bytes" (byte-level BPE), for
        training; of a file that `path` names it is what tracing takes it for.
      coverage: share of characters that get a piece of their own, for training (0.9995 suits
        Korean); "bytes" needs none, since it has all bytes.
      sentinels: how many sentinel ids (<extra_id_0> ...) stand above the pieces of sentencepiece;
        the other kinds have none.
      lowercase: lower-case the text and drop accents before it is cut; also true where the files
        that `path` names say so. Not for "bytes".
    """

    path: str = ""
    size: int = 32000
    kind: str = "unigram"
    coverage: float = 1.0
    sentinels: int = 100
    lowercase: bool = False

    def blank(self) -> "BlankVocab":
        """Ids without text, for tracing a run whose vocabulary is not at hand.

        Raises:
          ConfigError: an unknown kind, or numbers that no vocabulary has.
        """
        if self.kind not in KINDS:
            raise ConfigError(f"data.vocabulary.kind={self.kind}: {nearest(self.kind, KINDS)}")
        for name, least, most in (("size", 8, 2**24), ("sentinels", 0, 10_000)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"data.vocabulary.{name}={getattr(self, name)}: must be from {least} to {most}"
                )
        return BlankVocab(self.size, self.sentinels, kind=self.kind)


class BlankVocab:
    """The ids of a vocabulary that has not been trained or read: enough to know every shape of a
    run. The special symbols are those of a vocabulary trained here; every piece begins a word.
    """

    pad: int | None
    eos: int | None
    unk: int | None
    bos: int | None
    cls: int | None
    sep: int | None
    mask: int | None

    def __init__(self, pieces: int, sentinels: int, *, kind: str = "unigram"):
        self.pieces = pieces
        self.size = pieces + (sentinels if kind in ("unigram", "bpe") else 0)
        self.sentinels = np.arange(self.size - 1, pieces - 1, -1, dtype=np.int32)
        if kind == "wordpiece":
            ids = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
        elif kind == "bytes":
            ids = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": pieces - 1}
        else:
            ids = {"pad": 0, "eos": 1, "unk": 2, "bos": 3, "cls": 4, "sep": 5, "mask": 6}
        for name in ("pad", "eos", "unk", "bos", "cls", "sep", "mask"):
            setattr(self, name, ids[name] if name in ids else None)
        self.special = np.zeros(self.size, bool)
        self.special[[at for name, at in ids.items() if name != "unk"]] = True
        self.special[self.sentinels] = True
        self.word_starts = self.unit_starts = np.ones(self.size, bool)


@dataclass(frozen=True)
class Phase:
    """A part of a run: from step `start` (the first is 0) on, rows and batches have these sizes.

    Attributes:
      start: steps made before it.
      length: as `Data.length`.
      batch: as `Data.batch`.
    """

    start: int
    length: int
    batch: int


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
        pieces of documents packed best-fit into rows), "split" (one piece of one document per row,
        padded), "sentences" (as many whole sentences of one document as fit, padded),
        "full_sentences" (the same across documents), "continue" (each row goes on where that row
        of the batch before ended) or "examples" (of tasks).
      phases: changes of length and batch on the way, in the order of their starts; until the first
        of them the run has `length` and `batch`.
    """

    sources: tuple[Source, ...]
    batch: int
    length: int
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    held_out: tuple[Source, ...] = ()
    held_out_share: float = 0.01
    packing: str = "stream"
    phases: tuple[Phase, ...] = ()

    @property
    def course(self) -> tuple[Phase, ...]:
        """All phases of the run, the one from step 0 included."""
        return (Phase(0, self.length, self.batch), *self.phases)
