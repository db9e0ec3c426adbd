"""One unit of a corpus's preparation: a run of documents, tokenised, one shard per split.

Runs in worker processes. What it leaves in the chunk folder is whole or absent: shards and lengths
first, then the chunk's own record (JSON), which is what makes it count.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from flaxlm.data.corpus import serialize, token_dtype
from flaxlm.data.files import digest, write_whole
from flaxlm.data.sentences import sentences, spaced_sentences
from flaxlm.data.vocab import Vocab
from flaxlm.errors import ConfigError, StorageError

SPLITS = ("train", "validation")
# One record per compressed block, so that reading one document decompresses one document.
_OPTIONS = "group_size:1,zstd:1"
_BATCH = 256  # documents per call of the tokeniser


def shard_path(work: Path, number: int, split: str) -> Path:
    return work / "chunks" / f"{number:06d}-{split}.array_record"


def lengths_path(shard: Path, what: str) -> Path:
    """Where the lengths in tokens of a shard's "documents" or "sentences" lie."""
    return shard.with_suffix(f".{what}.npy")


def text_digest(texts: list[str]) -> str:
    """Names the content of a chunk: an interrupted preparation goes on only with the same
    documents.
    """
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode())
        sha.update(b"\0")  # NUL occurs in no document
    return sha.hexdigest()


def finished_chunk(work: Path, number: int, checksum: str, limit: int) -> dict | None:
    """The record of a chunk that is on disk, whole, of these documents and split at this limit."""
    try:
        chunk = json.loads(_record_path(work, number).read_bytes())
    except (OSError, ValueError):
        return None
    no_change = chunk["limit"] == limit or (chunk["lowest"] or 0) >= max(limit, chunk["limit"])
    present = all(
        shard_path(work, number, split).exists()
        for split, facts in chunk["splits"].items()
        if facts["documents"]
    )
    return chunk if chunk["digest"] == checksum and no_change and present else None


def write_chunk(
    work: Path, number: int, texts: list[str], checksum: str, limit: int, vocab: Vocab
) -> dict:
    """Tokenise and write the documents of a chunk.

    Args:
      work: the folder of the preparation.
      number: of the chunk.
      texts: its documents.
      checksum: their `text_digest`.
      limit: documents whose 64-bit hash lies below are held out.
      vocab: see `tokenise`.

    Returns:
      The chunk's record: counts, sizes, sha256 of each shard.
    """
    dtype = token_dtype(vocab.pieces)
    temporary = {s: shard_path(work, number, s).with_suffix(f".{os.getpid()}.tmp") for s in SPLITS}
    lengths: dict[str, list[int]] = {s: [] for s in SPLITS}
    sentence_lengths: dict[str, list[np.ndarray]] = {s: [] for s in SPLITS}
    unknown = dict.fromkeys(SPLITS, 0)
    without_tokens, lowest = 0, None
    try:
        writers = {s: ArrayRecordWriter(str(temporary[s]), _OPTIONS) for s in SPLITS}
        for text, (tokens, starts) in zip(texts, tokenise(texts, vocab), strict=True):
            if not len(tokens):  # control characters only
                without_tokens += 1
                continue
            place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
            lowest = place if lowest is None else min(lowest, place)
            split = SPLITS[place < limit]
            writers[split].write(serialize(tokens.astype(dtype), starts))
            lengths[split].append(len(tokens))
            sentence_lengths[split].append(np.diff(starts, append=len(tokens)))
            unknown[split] += int((tokens == vocab.unk).sum())
        for writer in writers.values():
            writer.close()
    except (RuntimeError, OSError) as error:
        raise StorageError(
            f"cannot write {work / 'chunks'}: {str(error).splitlines()[0][:200]}"
        ) from error
    splits = {}
    for split in SPLITS:
        path = shard_path(work, number, split)
        facts = {
            "documents": len(lengths[split]),
            "tokens": sum(lengths[split]),
            "sentences": sum(map(len, sentence_lengths[split])),
            "unknown": unknown[split],
        }
        if lengths[split]:
            with open(temporary[split], "rb") as file:
                os.fsync(file.fileno())
            facts |= {"bytes": temporary[split].stat().st_size, "sha256": digest(temporary[split])}
            _save(lengths_path(path, "documents"), np.array(lengths[split]))
            _save(lengths_path(path, "sentences"), np.concatenate(sentence_lengths[split]))
            os.replace(temporary[split], path)
        else:
            temporary[split].unlink()
        splits[split] = facts
    chunk = {
        "digest": checksum,
        "limit": limit,
        "lowest": lowest,
        "characters": sum(map(len, texts)),
        "without_tokens": without_tokens,
        "splits": splits,
    }
    write_whole(_record_path(work, number), json.dumps(chunk).encode())
    return chunk


def tokenise(texts: list[str], vocab: Vocab) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per document (ids int32 [t], sentence starts int32 [s]).

    Sentences are tokenised one by one; the ids are those of the whole document. Its runs of
    whitespace between sentences count as one space, unless the vocabulary keeps them.

    Raises:
      ConfigError: the vocabulary has pieces that reach across words, so sentences cannot be told
        apart.
    """
    cut, lead = (spaced_sentences, "") if vocab.keeps_spaces else (sentences, _lead(vocab))
    for first in range(0, len(texts), _BATCH):
        split = [cut(text) for text in texts[first : first + _BATCH]]
        flat = [s if at == 0 else lead + s for found in split for at, s in enumerate(found)]
        ids = iter(vocab.encode_batch(flat))
        for found in split:
            parts = [next(ids) for _ in found]
            counts = np.array([len(p) for p in parts], np.int32)
            tokens = np.fromiter(chain.from_iterable(parts), np.int32, counts.sum())
            # A sentence may vanish in normalisation; it starts nowhere then.
            yield tokens, (np.cumsum(counts) - counts)[counts > 0].astype(np.int32)


def _lead(vocab: Vocab) -> str:
    """What to put before a sentence so that its ids are those it has inside the document."""
    for lead in ("", " "):
        first, second, both = vocab.encode_batch(
            ["One word.", lead + "Two words.", "One word. Two words."]
        )
        if first + second == both:
            return lead
    raise ConfigError(
        f"the vocabulary {vocab.path} has pieces that reach across words; it cannot mark sentences"
    )


def _save(path: Path, lengths: np.ndarray) -> None:
    write_whole(path, lambda file: np.save(file, lengths.astype(np.uint32)))


def _record_path(work: Path, number: int) -> Path:
    return work / "chunks" / f"{number:06d}.json"
