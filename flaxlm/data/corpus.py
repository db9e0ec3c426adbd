"""A prepared corpus: documents as token ids on disk, read in any order.

A corpus folder is a TFDS data set in array_record format
(`tfds.builder_from_directory(folder).as_data_source()` reads it) plus what training needs:

    MANIFEST.json        size, sha256 and records of every file; counts; sources; vocabulary hash
    vocab.model          the vocabulary its ids belong to
    train.offsets.npy    int64 [N + 1], tokens before each document; memory-mapped
    train.sentences.npy  int64 [S + 1], tokens before each sentence; memory-mapped
    flaxlm_corpus-train.array_record-00000-of-00004, ...

A record holds one document: token ids (uint16 or uint32, little-endian) and the places where its
sentences start.
"""

import os
import threading
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from flaxlm.data.corpus_files import check_files, read_manifest
from flaxlm.errors import ConfigError, DataError, MissingInput

SENTENCES = np.dtype("<u4")
# What a damaged record or shard makes the readers raise.
_DAMAGE = (RuntimeError, ValueError, OSError, IndexError, DecodeError)


def token_dtype(size: int) -> np.dtype:
    """The storage type of ids in [0, size)."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def serialize(tokens: np.ndarray, starts: np.ndarray) -> bytes:
    """One document as a tf.train.Example, the way TFDS stores tensors with `encoding="bytes"`."""
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["sentences"].bytes_list.value.append(starts.astype(SENTENCES).tobytes())
    features["tokens"].bytes_list.value.append(tokens.tobytes())
    return example.SerializeToString(deterministic=True)


class Corpus:
    """One split of a prepared corpus. Cheap to pickle (it reopens its files), safe to share between
    threads.

    Attributes:
      folder: where it lies.
      split: "train" or "validation".
      offsets: int64 [documents + 1], memory-mapped; document i has offsets[i + 1] - offsets[i]
        tokens.
      sentence_offsets: int64 [sentences + 1], memory-mapped; tokens before each sentence of the
        split, the last entry all of them. Every document with a token begins a sentence.
      documents: how many.
      tokens: how many in all.
      fingerprint: changes with any content of the split.
      vocab_sha256: of the vocabulary's model file.
    """

    @classmethod
    def open(
        cls, folder, split: str = "train", *, vocab_sha256: str | None = None, verify: str = "sizes"
    ) -> "Corpus":
        """Open and verify a split.

        Args:
          folder: a folder that `prepare` made.
          split: "train" or "validation".
          vocab_sha256: refuse a corpus of another vocabulary.
          verify: "sizes" (of all files: milliseconds) or "hashes" (their contents: reads all).

        Raises:
          MissingInput: no finished corpus there, or one of another vocabulary.
          ConfigError: no such split.
          DataError: a file is missing, truncated or changed.
        """
        folder = Path(os.path.expanduser(folder)).absolute()
        manifest = read_manifest(folder)
        if vocab_sha256 is not None and vocab_sha256 != manifest["vocab"]["sha256"]:
            raise MissingInput(
                f"corpus {folder} was made with vocabulary {manifest['vocab']['sha256']}, "
                f"this run has {vocab_sha256}; "
                f"use {folder / 'vocab.model'} or prepare the corpus again"
            )
        if split not in manifest["splits"]:
            known = ", ".join(manifest["splits"])
            raise ConfigError(f"corpus {folder} has no split {split!r}; there are: {known}")
        check_files(folder, manifest, hashes=verify == "hashes")
        return cls(folder, split, manifest)

    def __init__(self, folder: Path, split: str, manifest: dict):
        """Use `Corpus.open`, which verifies."""
        facts = manifest["splits"][split]
        self.folder, self.split = folder, split
        self.documents: int = facts["documents"]
        self.tokens: int = facts["tokens"]
        self.fingerprint: str = facts["fingerprint"]
        self.vocab_sha256: str = manifest["vocab"]["sha256"]
        self._manifest = manifest
        self._dtype = np.dtype(manifest["dtype"])
        self._lock = threading.Lock()
        self.offsets = _index(folder / facts["offsets"], self.documents, self.tokens)
        self.sentence_offsets = _index(
            folder / facts["sentence_offsets"], facts["sentences"], self.tokens
        )
        self._shards = [folder / name for name in facts["shards"]]
        records = [manifest["files"][name]["records"] for name in facts["shards"]]
        self._first = np.concatenate([[0], np.cumsum(records, dtype=np.int64)])
        if self._first[-1] != self.documents:
            raise DataError(
                f"corpus {folder}: the shards hold {self._first[-1]} records, the manifest says "
                f"{self.documents} documents; prepare the corpus again"
            )
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._shards)

    def __reduce__(self):
        return Corpus, (self.folder, self.split, self._manifest)

    def __len__(self) -> int:
        return self.documents

    def __repr__(self) -> str:
        size = f"{self.documents} documents, {self.tokens} tokens"
        return f"Corpus({str(self.folder)!r}, {self.split!r}: {size})"

    def _reader(self, shard: int) -> ArrayRecordReader:
        reader = self._readers[shard]
        if reader is None:
            with self._lock:
                reader = self._readers[shard]
                if reader is None:
                    reader = self._open_shard(shard)
                    self._readers[shard] = reader
        return reader

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        path = self._shards[shard]
        expected = int(self._first[shard + 1] - self._first[shard])
        try:
            reader = _reader_of(path)
            found = reader.num_records()
        except _DAMAGE as error:
            raise DataError(f"corpus file {path} is damaged: {_first_line(error)}") from error
        if found != expected:  # a damaged footer reads as an empty file without an error
            raise DataError(f"corpus file {path} has {found} records, the manifest says {expected}")
        return reader

    def read(self, ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Documents by number, in the order asked for.

        Args:
          ids: int [n], each in [0, documents).

        Returns:
          Per document (tokens int32 [t], sentence starts int32 [s]): `starts[0]` is 0.

        Raises:
          DataError: a shard is damaged; names the file and the record.
        """
        ids = np.asarray(ids, np.int64)
        assert not ids.size or (ids.min() >= 0 and ids.max() < self.documents), (
            f"document ids outside {self}"
        )
        found: list = [None] * len(ids)
        shards = np.searchsorted(self._first, ids, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            reader = self._reader(shard)
            wanted = (ids[places] - self._first[shard]).tolist()
            try:
                for place, record in zip(places.tolist(), reader.read(wanted), strict=True):
                    found[place] = self._parse(record)
            except _DAMAGE as error:
                raise self._damaged(shard, wanted, error) from error
        return found

    def _damaged(self, shard: int, wanted: list[int], error: Exception) -> DataError:
        """What to raise where one of the records `wanted` of a shard cannot be read."""
        path = self._shards[shard]
        for record in wanted:
            try:  # a reader that met damage reads nothing more
                self._parse(_reader_of(path).read([record])[0])
            except _DAMAGE as found:
                return DataError(
                    f"corpus file {path}: record {record} (document {self._first[shard] + record} "
                    f"of {self.split}) is damaged: {_first_line(found)}; copy or prepare the "
                    "corpus again"
                )
        return DataError(f"corpus file {path} is damaged: {_first_line(error)}")

    def check(self, ids: np.ndarray) -> None:
        """Read documents and compare them with the indexes.

        Raises:
          DataError: a document has not the tokens or not the sentences that the indexes give it.
        """
        for at, (tokens, starts) in zip(np.asarray(ids).tolist(), self.read(ids), strict=True):
            expected = int(self.offsets[at + 1] - self.offsets[at])
            inside = starts[:1].tolist() == [0] and (np.diff(starts, append=len(tokens)) > 0).all()
            if len(tokens) != expected or not inside:
                raise DataError(f"{self}: document {at} is not as {self.split}.offsets.npy says")
            begin, end = self.offsets[at : at + 2]
            first, last = np.searchsorted(self.sentence_offsets, (begin, end))
            if not np.array_equal(self.sentence_offsets[first:last] - begin, starts):
                raise DataError(f"{self}: document {at} is not as {self.split}.sentences.npy says")

    def _parse(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        features = tf_example_pb2.Example.FromString(record).features.feature
        tokens = np.frombuffer(features["tokens"].bytes_list.value[0], self._dtype)
        starts = np.frombuffer(features["sentences"].bytes_list.value[0], SENTENCES)
        return tokens.astype(np.int32), starts.astype(np.int32)


def _reader_of(path: Path) -> ArrayRecordReader:
    # Random access: reading ahead would fetch documents that nobody asked for.
    return ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=1 << 15)


def _index(path: Path, count: int, tokens: int) -> np.ndarray:
    """The memory-mapped places of `count` things in a split of `tokens` tokens, and its end."""
    try:
        offsets = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise DataError(f"corpus file {path} is damaged: {error}") from error
    if offsets.shape != (count + 1,) or offsets[-1] != tokens:
        raise DataError(
            f"corpus file {path} does not belong to this manifest; prepare the corpus again"
        )
    return offsets


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
