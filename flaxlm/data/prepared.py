"""From a `Data` value to what a run reads: vocabulary and corpora, made once, kept in a cache."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxlm.data.corpus import Corpus
from flaxlm.data.corpus_files import FORMAT, check_once
from flaxlm.data.examples import PACKING, TaskExamples, open_examples
from flaxlm.data.files import alone, cache_folder, key, write_whole
from flaxlm.data.prepare import prepare
from flaxlm.data.sources import documents, fingerprint
from flaxlm.data.spec import Data, Source, Vocabulary
from flaxlm.data.vocab import Vocab, load_vocab, train_vocab
from flaxlm.errors import ConfigError, DataError, MissingInput


@dataclass(frozen=True)
class Prepared:
    """What a run reads.

    Attributes:
      vocab: the vocabulary of all corpora.
      train: (corpus, or examples of a task; weight) per source.
      held_out: the same for evaluation; empty if the run has no held-out text.
    """

    vocab: Vocab
    train: list[tuple[Corpus | TaskExamples, float]]
    held_out: list[tuple[Corpus | TaskExamples, float]]


def open_data(data: Data, *, cache: Path | None = None) -> Prepared:
    """Open everything `data` names; train the vocabulary and prepare the corpora that are not there
    yet.

    Safe when several processes of one machine start at once: one works, the others wait for it.

    Args:
      data: the run's sources and vocabulary.
      cache: folder to keep what is made; None is `cache_folder()`.

    Raises:
      ConfigError: no source, a weight that is not positive, an unknown kind of source.
      MissingInput: a file, data set, corpus or vocabulary is not there or does not belong.
      DataError: the input is not usable.
    """
    cache = cache_folder() if cache is None else Path(cache)
    if not data.sources:
        raise ConfigError("data.sources is empty: name at least one, for instance embedded:english")
    for source in (*data.sources, *data.held_out):
        if not source.weight > 0:
            raise ConfigError(f"weight {source.weight} of {source.uri}: must be above 0")
    vocab = _vocab(data, cache)
    if data.packing == PACKING:
        return Prepared(vocab, *open_examples(data))
    share = 0.0 if data.held_out else data.held_out_share
    train = [(_open(s, vocab, share, cache), s.weight) for s in data.sources]
    if data.held_out:
        held_out = [(_open(s, vocab, 0.0, cache), s.weight) for s in data.held_out]
    elif share:
        held_out = [(_open(s, vocab, share, cache, held_out=True), s.weight) for s in data.sources]
    else:
        held_out = []
    return Prepared(vocab, train, held_out)


def cached_vocab(spec: Vocabulary, sources: Sequence[Source], cache: Path) -> Vocab:
    """The vocabulary `spec` describes, trained on `sources` once; equal descriptions share one
    file.

    Raises:
      ConfigError, MissingInput, DataError: see `train_vocab` and `documents`.
    """
    settings = [spec.size, spec.kind, spec.coverage, spec.lowercase]
    facts = [2, *settings, [fingerprint(s) for s in sources]]
    path = cache / "vocab" / f"{key(facts)}.model"
    with alone(path.with_suffix(".lock")):
        if not path.exists():
            names = ", ".join(s.uri for s in sources)
            _say(f"training a vocabulary of {spec.size} {spec.kind} pieces on {names}: {path}")
            write_whole(path, train_vocab(interleaved(sources), spec, names=names).model)
    return load_vocab(path, sentinels=spec.sentinels)


def cached_corpus(source: Source, vocab: Vocab, held_out_share: float, cache: Path) -> Path:
    """The folder of `source` prepared with `vocab`; made if it is not there, made again if it is
    damaged.
    """
    facts = [FORMAT, vocab.sha256, held_out_share, fingerprint(source)]
    folder = cache / "corpus" / key(facts)
    with alone(folder.with_name(folder.name + ".open.lock")):
        if folder.exists():
            try:
                check_once(folder, cache)
                return folder
            except (DataError, MissingInput) as error:
                _say(f"{error}; making it again")
                shutil.rmtree(folder)
        _say(f"preparing {source.uri} (split {source.split}): {folder}")
        prepare([source], vocab, folder, held_out_share=held_out_share)
    return folder


def interleaved(sources: Sequence[Source]) -> Iterator[str]:
    """Documents of all sources in turn, so that a sample of the beginning has something of each."""
    streams = [documents(source) for source in sources]
    while streams:
        for stream in tuple(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
            else:
                yield text


def _vocab(data: Data, cache: Path) -> Vocab:
    spec = data.vocabulary
    if spec.path:
        return load_vocab(spec.path, sentinels=spec.sentinels, lowercase=spec.lowercase)
    corpora = [s for s in (*data.sources, *data.held_out) if _folder(s)]
    if (
        corpora
    ):  # a prepared corpus brings its vocabulary; that all agree is checked as they are opened
        return load_vocab(_folder(corpora[0]) / "vocab.model", sentinels=spec.sentinels)
    return cached_vocab(spec, data.sources, cache)


def _open(
    source: Source, vocab: Vocab, share: float, cache: Path, *, held_out: bool = False
) -> Corpus:
    folder = _folder(source)
    if folder is not None:
        split = "validation" if held_out else source.split
    else:
        # `source.split` says what is read; what is made of it has the splits "train" and
        # "validation".
        folder = cached_corpus(source, vocab, share, cache)
        split = "validation" if held_out else "train"
    check_once(folder, cache)
    return Corpus.open(folder, split, vocab_sha256=vocab.sha256)


def _folder(source: Source) -> Path | None:
    kind, _, name = source.uri.partition(":")
    return Path(os.path.expanduser(name)) if kind == "corpus" else None


def _say(line: str) -> None:
    print(f"data: {line}", file=sys.stderr, flush=True)
