"""Writes a prepared corpus: streaming, parallel, and going on where it was killed.

The stream of documents is cut into chunks of a fixed number of characters; a chunk is one unit of
work for one process and becomes one shard per split. Finished chunks stay finished: after a kill
the same command goes on where it was. Everything happens in FOLDER.partial, which is renamed to
FOLDER as the last act, manifest inside.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from flaxlm.data.chunk import SPLITS, finished_chunk, text_digest, write_chunk
from flaxlm.data.corpus_files import FORMAT, MANIFEST, read_manifest
from flaxlm.data.files import alone, write_whole
from flaxlm.data.finish import count, finish
from flaxlm.data.formats import Counts
from flaxlm.data.sources import documents, fingerprint
from flaxlm.data.spec import Source
from flaxlm.data.vocab import Vocab
from flaxlm.errors import ConfigError, DataError, RunDirError, StorageError

_SHARD = 1 << 26  # characters: 30 to 60 MB of shard, well under 1 GB of memory per process


def prepare(
    sources: Sequence[Source],
    vocab: Vocab,
    out,
    *,
    held_out_share: float = 0.01,
    workers: int | None = None,
    shard_characters: int = _SHARD,
) -> dict:
    """Tokenise `sources`, one after the other, into the corpus folder `out`. Returns the manifest.

    A document is held out by a hash of its text, so equal texts fall on the same side and the
    choice does not move when other documents come or go. If the share is above 0 and chance held
    out nothing, the one document nearest to it is.

    Args:
      sources: their weights play no part here.
      vocab: every id in the corpus is one of its pieces.
      out: folder to make. One made from the same input is left as it is.
      held_out_share: share of the documents that go to the split "validation".
      workers: processes; None is one per core, and none for input of one chunk.
      shard_characters: characters of text per shard.

    Raises:
      DataError: bad input (file:line:byte), no document at all, or only one where some should be
        held out.
      MissingInput: a source is not there.
      RunDirError: `out` holds something else.
      StorageError: the disk is full or not writable.
    """
    if not 0 <= held_out_share < 1:
        raise ConfigError(f"held-out share {held_out_share}: at least 0 and below 1")
    out = Path(os.path.expanduser(out)).absolute()
    work = out.with_name(out.name + ".partial")
    settings = {
        "format": FORMAT,
        "vocab": vocab.sha256,
        "held_out_share": held_out_share,
        "shard_characters": shard_characters,
        "sources": [
            {
                "uri": s.uri,
                "split": s.split,
                "field": s.field,
                "on_decode_error": s.on_decode_error,
                "fingerprint": fingerprint(s),
            }
            for s in sources
        ],
    }
    lock = out.with_name(out.name + ".lock")
    if _same(out, settings):
        return read_manifest(out)
    with alone(lock):
        if _same(out, settings):
            return read_manifest(out)
        if out.exists():
            if not out.is_dir() or any(out.iterdir()):
                raise RunDirError(
                    f"{out} exists and holds something else; choose another folder or move it away"
                )
            out.rmdir()
        try:
            _start(work, settings)
            if not (work / MANIFEST).exists():
                if not (work / "plan.json").exists():
                    _make_chunks(sources, vocab, work, settings, workers)
                finish(work, vocab)
            for rest in ("plan.json", "settings.json"):
                (work / rest).unlink(missing_ok=True)
            shutil.rmtree(work / "chunks", ignore_errors=True)
            os.rename(work, out)
            lock.unlink()  # whoever waits on it finds the corpus finished
        except OSError as error:
            raise StorageError(f"cannot write {work}: {error.strerror or error}") from error
    manifest = read_manifest(out)
    for split, facts in manifest["splits"].items():
        if facts["unknown"] > 0.01 * facts["tokens"]:
            share = f"{facts['unknown'] / facts['tokens']:.0%} of the tokens of {split} are unknown"
            _say(f"warning: {share}: {vocab.path or 'the vocabulary'} does not suit this text")
    return manifest


def _start(work: Path, settings: dict) -> None:
    """Make the working folder, or keep what an interrupted preparation of the same input left
    there.
    """
    path = work / "settings.json"
    if _same(work, settings):
        return
    if work.exists() and not (path.exists() and json.loads(path.read_bytes()) == settings):
        _say(f"{work} was begun from other input: starting over")
        shutil.rmtree(work)
    (work / "chunks").mkdir(parents=True, exist_ok=True)
    for rest in work.rglob("*.tmp"):
        rest.unlink()
    write_whole(path, json.dumps(settings, indent=1).encode())


def _same(folder: Path, settings: dict) -> bool:
    """Whether `folder` holds a finished corpus of the same input."""
    return (folder / MANIFEST).is_file() and read_manifest(folder)["settings"] == settings


def _make_chunks(sources, vocab: Vocab, work: Path, settings: dict, workers: int | None) -> None:
    share = settings["held_out_share"]
    limit = int(share * 2**64)
    counts, chunks = _pass(sources, vocab, work, settings["shard_characters"], limit, workers)
    kept = sum(count(chunks, split) for split in SPLITS)
    described = ", ".join(s.uri for s in sources)
    if not kept:
        vanished = sum(chunk["without_tokens"] for chunk in chunks)
        read = ", ".join(found.dropped for found in counts)
        raise DataError(
            f"{described}: 0 documents after filtering ({read}, dropped: control characters only "
            f"{vanished:,})"
        )
    if share and not count(chunks, "validation"):
        if kept == 1:
            raise DataError(
                f"one document in {described}: none can be held out of training. Give held-out "
                "sources of their own, or a held-out share of 0; a file of many documents is read "
                "with lines: or jsonl:"
            )
        limit = min(c["lowest"] for c in chunks if c["lowest"] is not None) + 1
        counts, chunks = _pass(sources, vocab, work, settings["shard_characters"], limit, workers)
    if not count(chunks, "train"):
        raise DataError(
            f"all {kept} documents of {described} were held out; lower the held-out share {share}"
        )
    plan = {"chunks": chunks, "counts": [asdict(c) for c in counts], "settings": settings}
    write_whole(work / "plan.json", json.dumps(plan).encode())


def _pass(
    sources, vocab: Vocab, work: Path, size: int, limit: int, workers: int | None
) -> tuple[list[Counts], list[dict]]:
    """Go through all documents once. Chunks that lie finished on the disk are compared, not
    tokenised again.
    """
    counts = [Counts() for _ in sources]
    stream = itertools.chain.from_iterable(
        documents(s, counts=c) for s, c in zip(sources, counts, strict=True)
    )
    chunks = _chunked(stream, size)
    head = list(itertools.islice(chunks, 2))
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if len(head) < 2:  # starting a process takes longer than tokenising one small chunk
        workers = 1
    done: list[dict] = []
    progress = _Progress()
    waiting: deque = deque()  # results in order: a chunk on disk, or the future of one
    with _pool(workers) as submit:
        for number, texts in enumerate(itertools.chain(head, chunks)):
            checksum = text_digest(texts)
            found = finished_chunk(work, number, checksum, limit)
            waiting.append(
                found or submit(write_chunk, work, number, texts, checksum, limit, vocab)
            )
            del texts
            while (
                len(waiting) > workers
            ):  # bounds the memory: texts travel no further ahead than this
                done.append(_result(waiting.popleft()))
                progress.show(done[-1])
        while waiting:
            done.append(_result(waiting.popleft()))
            progress.show(done[-1])
    progress.end()
    return counts, done


def _result(item) -> dict:
    if isinstance(item, dict):
        return item
    try:
        return item.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker process was killed, by lack of memory perhaps: try fewer --workers"
        ) from error


@contextlib.contextmanager
def _pool(workers: int) -> Iterator:
    """`submit(function, *arguments)` -> a future, or the result itself where there is but one
    worker.
    """
    if workers == 1:
        yield lambda function, *arguments: function(*arguments)
        return
    # spawn: the parent may hold threads and devices that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """A killed parent leaves its workers waiting for ever, unless they watch for it."""
    import threading

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _chunked(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Runs of documents with at least `size` characters, but for the last."""
    chunk, length = [], 0
    for text in texts:
        chunk.append(text)
        length += len(text)
        if length >= size:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _say(line: str) -> None:
    print(f"prepare: {line}", file=sys.stderr, flush=True)


class _Progress:
    """A line on stderr every few seconds, none at all for what is done before the first."""

    def __init__(self, every: float = 5.0):
        self.every, self.shown, self.begun = every, time.monotonic(), time.monotonic()
        self.chunks = self.documents = self.tokens = self.characters = self.lines = self.told = 0

    def show(self, chunk: dict) -> None:
        self.chunks += 1
        self.documents += count([chunk], "train") + count([chunk], "validation")
        self.tokens += count([chunk], "train", "tokens") + count([chunk], "validation", "tokens")
        self.characters += chunk["characters"]
        if time.monotonic() - self.shown >= self.every:
            self._line()

    def end(self) -> None:
        if self.lines and self.told < self.chunks:
            self._line()

    def _line(self) -> None:
        self.shown = time.monotonic()
        self.lines, self.told = self.lines + 1, self.chunks
        rate = self.characters / (self.shown - self.begun) / 1e6
        _say(
            f"{self.chunks} chunks, {self.documents:,} documents, {self.tokens / 1e6:.1f}M tokens, "
            f"{rate:.1f}M characters/s"
        )
