"""Training vocabularies, the same bytes for the same text whatever the machine.

Sentencepiece does its kinds itself. The merges of the others come from the `tokenizers` package's
trainer for byte pairs. Its trainer for WordPiece numbers characters in the order of a hash table
with a random seed, so two runs differ; here the characters at the beginning and inside of words are
therefore rewritten as private characters, one each, and the same deterministic trainer merges them.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from flaxlm.data.byte_bpe import BpeVocab
from flaxlm.data.sentencepiece_vocab import RULES, SentencepieceVocab
from flaxlm.data.sentences import sentences
from flaxlm.data.spec import KINDS, Vocabulary
from flaxlm.data.vocab_base import Vocab
from flaxlm.data.wordpiece import LONGEST, SYMBOLS, WordPieceVocab, words
from flaxlm.errors import ConfigError, DataError, nearest

_SAMPLE = 1_000_000  # sentences to train on
_SEARCHED = 10_000_000  # sentences to choose them from
_LONGEST = 4096  # characters of one training sentence
# sentencepiece's result depends on its thread count, so it is not the machine's.
_THREADS = 4
_SEEN = 2  # a pair that occurs only once is not worth a piece
_INITIAL, _INNER = 0xF0000, 0x100000  # private planes of Unicode, 65,534 characters each
_PLANE = 65_534
_AT_ONCE = 1000  # copies of a word in one text for the trainer


def train_vocab(texts: Iterable[str], spec: Vocabulary, *, names: str = "the sources") -> Vocab:
    """Train a vocabulary in this process, deterministically.

    The special pieces come first: <pad> </s> <unk> <s> <cls> <sep> <mask> in sentencepiece, then
    256 bytes; [PAD] [UNK] [CLS] [SEP] [MASK] in WordPiece, then characters; <s> <pad> </s> <unk>
    over bytes, then the 256, where <mask> is the last. From large texts a million sentences are
    drawn, uniformly from the first ten million.

    Args:
      texts: documents; each is used sentence by sentence.
      spec: size, kind, coverage, lowercase and sentinels.
      names: of the sources, for messages.

    Raises:
      ConfigError: a size that these texts cannot fill or that cannot hold their characters; both
        say the limit.
      DataError: no text at all.
    """
    if spec.kind not in KINDS:
        raise ConfigError(f"vocabulary kind {spec.kind!r}: {nearest(spec.kind, KINDS)}")
    if spec.kind == "bytes" and spec.lowercase:
        raise ConfigError("a vocabulary of bytes keeps its text: leave lowercase away")
    sample = _sample(texts)
    if not sample:
        raise DataError(f"cannot train a vocabulary: there is no text in {names}")
    if spec.kind == "wordpiece":
        return _train_wordpiece(sample, spec)
    if spec.kind == "bytes":
        return _train_bytes(sample, spec)
    return _train_sentencepiece(sample, spec)


def _train_sentencepiece(sample: list[str], spec: Vocabulary) -> Vocab:
    rule = "lowercase" if spec.lowercase else "plain"
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(RULES[rule](text.replace("\n", " ")) for text in sample),
            model_writer=written,
            vocab_size=spec.size,
            model_type=spec.kind,
            character_coverage=spec.coverage,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            pad_piece="<pad>",
            # Control pieces never come out of a text, so a text that says <mask> masks nothing.
            control_symbols=["<cls>", "<sep>", "<mask>"],
            # In bytes; a longer one would be skipped without a word. Taken apart, a character
            # becomes at most 18 characters, a Korean one three, Latin ones two or three.
            max_sentence_length=(4 if rule == "plain" else 72) * _LONGEST + 1,
            num_threads=_THREADS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise ConfigError(_explain(str(error), spec)) from error
    return SentencepieceVocab(written.getvalue(), sentinels=spec.sentinels, rule=rule)


def _train_bytes(sample: list[str], spec: Vocabulary) -> Vocab:
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    least = len(first) + 256 + 1
    if spec.size < least:
        raise ConfigError(_too_small(spec, "the 256 bytes and the special pieces", least))
    # Most sentences of a text come after a space.
    texts = (" " + text for text in sample)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = _merge(texts, cut, spec.size - 1, first=first, alphabet=alphabet)
    return _filled(BpeVocab([*pieces, "<mask>"], merges), spec)


def _train_wordpiece(sample: list[str], spec: Vocabulary) -> Vocab:
    normalizer, cut = words(lowercase=spec.lowercase)
    seen: Counter[str] = Counter()
    for text in sample:
        seen.update(word for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(text)))
    characters: Counter[str] = Counter()
    for word, count in seen.items():
        for character in word:
            characters[character] += count
    kept = sorted(_covering(characters, spec.coverage)[:_PLANE])
    initial = {character: chr(_INITIAL + n) for n, character in enumerate(kept)}
    inner = {character: chr(_INNER + n) for n, character in enumerate(kept)}
    usable = [word for word in sorted(seen) if len(word) <= LONGEST and initial.keys() >= {*word}]
    used = {word[0] for word in usable}, {character for word in usable for character in word[1:]}
    special = list(SYMBOLS.values())
    least = len(special) + len(used[0]) + len(used[1])
    if spec.size < least:
        what = "the characters of these texts, at the beginning and inside of words"
        raise ConfigError(_too_small(spec, what, least) + f", or a coverage below {spec.coverage}")
    rewritten = (initial[word[0]] + "".join(inner[c] for c in word[1:]) for word in usable)
    texts = (
        " ".join([private] * min(seen[word] - start, _AT_ONCE))
        for word, private in zip(usable, rewritten, strict=True)
        for start in range(0, seen[word], _AT_ONCE)
    )
    pieces, _ = _merge(texts, pre_tokenizers.WhitespaceSplit(), spec.size, first=special)
    spelling = {private: character for character, private in (*initial.items(), *inner.items())}
    readable = [
        ("##" if piece[0] >= chr(_INNER) else "") + "".join(spelling[c] for c in piece)
        for piece in pieces[len(special) :]
    ]
    return _filled(WordPieceVocab([*special, *readable], lowercase=spec.lowercase), spec)


def _merge(
    texts: Iterator[str], cut, size: int, *, first: list[str], alphabet: list[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """(pieces by id, merges) of at most `size` pieces: `first`, characters, what was merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_SEEN,
        special_tokens=first,
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(ids, key=ids.__getitem__), [tuple(pair) for pair in merges]


def _covering(characters: Counter[str], coverage: float) -> list[str]:
    """The most frequent characters that are together `coverage` of all, the rarer ones last."""
    order = sorted(characters, key=lambda character: (-characters[character], character))
    share = np.cumsum([characters[c] for c in order]) / max(characters.total(), 1)
    return order[: int(np.searchsorted(share, coverage - 1e-12)) + 1]


def _filled(vocab: Vocab, spec: Vocabulary) -> Vocab:
    if vocab.pieces < spec.size:
        raise ConfigError(_too_large(spec, vocab.pieces))
    return vocab


def _sample(texts: Iterable[str]) -> list[str]:
    """At most `_SAMPLE` of the first `_SEARCHED` sentences, each equally likely (Vitter's
    reservoir).
    """
    random = np.random.Generator(np.random.Philox(0))
    kept: list[str] = []
    seen = 0
    for text in texts:
        for sentence in sentences(text):
            for start in range(0, len(sentence), _LONGEST):
                part = sentence[start : start + _LONGEST]
                seen += 1
                if len(kept) < _SAMPLE:
                    kept.append(part)
                elif (place := int(random.integers(seen))) < _SAMPLE:
                    kept[place] = part
        if seen >= _SEARCHED:
            break
    return kept


def _too_large(spec: Vocabulary, most: int | str) -> str:
    return (
        f"vocabulary size {spec.size} is more than these texts can fill: at most {most} "
        "(data.vocabulary.size, or --size)"
    )


def _too_small(spec: Vocabulary, what: str, least: int | str) -> str:
    return (
        f"vocabulary size {spec.size} cannot hold {what}: at least {least} "
        "(data.vocabulary.size, or --size)"
    )


def _explain(message: str, spec: Vocabulary) -> str:
    """sentencepiece's complaint, in the user's terms."""
    if found := re.search(r"too high \(\d+\).*?<= (\d+)", message, re.S):
        return _too_large(spec, found[1])
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            _too_small(spec, "the characters of these texts", found[1])
            + f", or a coverage below {spec.coverage}"
        )
    return f"sentencepiece cannot train this vocabulary ({spec}): {message.splitlines()[-1]}"
