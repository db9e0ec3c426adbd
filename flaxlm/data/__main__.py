"""`python -m flaxlm.data`: train a vocabulary, prepare a corpus, check it, look at it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from flaxlm.data.corpus import Corpus
from flaxlm.data.corpus_files import read_manifest
from flaxlm.data.files import write_whole
from flaxlm.data.prepare import prepare
from flaxlm.data.prepared import interleaved
from flaxlm.data.sources import POLICIES
from flaxlm.data.spec import KINDS, Source, Vocabulary
from flaxlm.data.vocab import KOREAN, load_vocab, train_vocab
from flaxlm.errors import ConfigError, command, nearest


class _Parser(argparse.ArgumentParser):
    """One line and our own exit code where argparse prints its usage and exits with 2."""

    def parse_known_args(self, args=None, namespace=None):
        if self._subparsers is None:  # before argparse complains of what the misspelt flag left out
            for word in args:
                flag = word.partition("=")[0]
                if flag.startswith("--") and flag not in self._option_string_actions:
                    raise ConfigError(
                        f"unknown flag {flag}: {nearest(flag, self._option_string_actions)}"
                    )
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        raise ConfigError(f"{self.prog}: {message} (--help explains)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m flaxlm.data", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    def add_sources(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--source",
            action="append",
            required=True,
            metavar="URI",
            help="embedded:english, tfds:NAME, or text:, lines:, jsonl:, parquet: and a file "
            "pattern; repeatable",
        )
        sub.add_argument("--split", default="train", help="split of TFDS sources (train)")
        sub.add_argument("--field", default="text", help="text field of records (text)")
        sub.add_argument(
            "--on-decode-error",
            choices=POLICIES,
            default="error",
            help="what becomes of documents that are not UTF-8 (error: stop)",
        )

    sub = add("vocab", _vocab, "train a vocabulary")
    add_sources(sub)
    sub.add_argument("--out", required=True, type=Path, metavar="FILE")
    sub.add_argument("--size", required=True, type=int, help="pieces, special ones included")
    sub.add_argument("--kind", choices=KINDS, default="unigram")
    sub.add_argument("--korean", action="store_true", help="settings that suit Korean text")
    sub.add_argument("--lowercase", action="store_true", help="no capitals, no accents")

    sub = add("prepare", _prepare, "tokenise sources into a corpus folder")
    add_sources(sub)
    sub.add_argument("--vocab", required=True, metavar="FILE")
    sub.add_argument("--lowercase", action="store_true", help="for a file that leaves it open")
    sub.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    sub.add_argument("--held-out", type=float, default=0.01, help="share of documents (0.01)")
    sub.add_argument("--workers", type=int, help="processes (one per core)")

    sub = add("check", _check, "compare every byte of a corpus with its manifest")
    sub.add_argument("folder", type=Path)

    sub = add("show", _show, "print documents of a corpus")
    sub.add_argument("folder", type=Path)
    sub.add_argument("-n", type=int, default=3, help="how many (3)")
    sub.add_argument("--split", default="train")

    sub = add("count", _count, "write how often each id occurs in a corpus, id 0 on the first line")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--out", required=True, type=Path, metavar="FILE")
    sub.add_argument("--split", default="train")
    return parser


def _sources(options) -> list[Source]:
    return [
        Source(
            uri,
            split=options.split,
            field=options.field,
            on_decode_error=options.on_decode_error,
        )
        for uri in options.source
    ]


def _vocab(options) -> None:
    base = KOREAN if options.korean else Vocabulary()
    spec = replace(base, size=options.size, kind=options.kind, lowercase=options.lowercase)
    if not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no folder {options.out.parent}")
    vocab = train_vocab(interleaved(_sources(options)), spec)
    write_whole(options.out, vocab.model)
    print(f"{options.out}: {vocab.pieces} {spec.kind} pieces, sha256 {vocab.sha256}")


def _prepare(options) -> None:
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1")
    manifest = prepare(
        _sources(options),
        load_vocab(options.vocab, lowercase=options.lowercase),
        options.out,
        held_out_share=options.held_out,
        workers=options.workers,
    )
    _describe(options.out, manifest)


def _check(options) -> None:
    manifest = read_manifest(options.folder)
    for split in manifest["splits"]:
        corpus = Corpus.open(options.folder, split, verify="hashes")
        for start in range(0, len(corpus), 256):
            corpus.check(np.arange(start, min(start + 256, len(corpus))))
    _describe(options.folder, manifest)
    print("every file is as the manifest says, every document as the index says")


def _show(options) -> None:
    corpus = Corpus.open(options.folder, options.split)
    vocab = load_vocab(options.folder / "vocab.model")
    for number in range(min(options.n, len(corpus))):
        tokens, starts = corpus.read(np.array([number]))[0]
        print(f"--- document {number}: {len(tokens)} tokens, {len(starts)} sentences")
        for sentence in np.split(tokens, starts[1:]):
            print(vocab.decode(sentence))


def _count(options) -> None:
    corpus = Corpus.open(options.folder, options.split)
    counts = np.zeros(load_vocab(options.folder / "vocab.model").pieces, np.int64)
    for start in range(0, len(corpus), 1024):
        documents = corpus.read(np.arange(start, min(start + 1024, len(corpus))))
        ids = np.concatenate([tokens for tokens, _ in documents])
        counts += np.bincount(ids, minlength=len(counts))
    write_whole(options.out, "".join(f"{count}\n" for count in counts).encode())
    print(f"{options.out}: {counts.sum():,} tokens, {np.count_nonzero(counts):,} ids occur")


def _describe(folder: Path, manifest: dict) -> None:
    for split, facts in manifest["splits"].items():
        counts = (
            f"{facts[what]:,} {what}" for what in ("documents", "sentences", "tokens", "unknown")
        )
        print(f"{folder} {split}: {', '.join(counts)}, {len(facts['shards'])} shards")
    for source in manifest["sources"]:
        counts = ", ".join(f"{name} {count}" for name, count in source["counts"].items())
        print(f"  {source['uri']}: {counts}")
    if manifest["without_tokens"]:
        print(f"  documents of control characters only, left out: {manifest['without_tokens']}")


@command
def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    options.function(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
