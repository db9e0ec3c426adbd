"""`Vocab`: a sentencepiece model with sentinel ids above its pieces, as Hugging Face T5 lays them.

The model file knows nothing of sentinels: with V pieces and n sentinels, <extra_id_0> is V + n - 1
and <extra_id_{n-1}> is V. Models trained here normalise with sentencepiece's `nmt_nfkc`, as T5's
does: it unifies width and ligatures, drops control characters and joins runs of whitespace, so
`decode(encode(text))` is the normalised text, not always `text`.
"""

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from flaxlm.data.files import digest
from flaxlm.data.sentences import sentences
from flaxlm.data.spec import Vocabulary
from flaxlm.errors import ConfigError, DataError, MissingInput

# Suits Korean: 11,172 syllables, of which text uses some 2,000, and Chinese characters that byte
# fallback catches.
KOREAN = Vocabulary(size=32000, kind="unigram", coverage=0.9995)

SPECIAL = (
    "pad",
    "eos",
    "unk",
    "bos",
    "cls",
    "sep",
    "mask",
)  # the ids 0 ... 6 of models trained here
_SAMPLE = 1_000_000  # sentences to train on
_SEARCHED = 10_000_000  # sentences to choose them from
_LONGEST = 4096  # characters of one training sentence
# sentencepiece's result depends on its thread count, so it is not the machine's.
_THREADS = 4


class Vocab:
    """A sentencepiece model and its sentinels. Cheap to pickle, safe to share between threads.

    Attributes:
      size: pieces and sentinels; ids are in [0, size).
      pieces: pieces of the model.
      pad, eos, unk, bos, cls, sep, mask: id, or None where the model has no such piece.
      sentinels: int32 [n]; sentinels[0] is <extra_id_0>.
      model: bytes of the model file.
      sha256: of the model file; what a corpus remembers of its vocabulary (sentinels are none of
        its business).
      path: where the model was read, "" if it never was a file.
    """

    pad: int | None
    eos: int | None
    unk: int | None
    bos: int | None
    cls: int | None
    sep: int | None
    mask: int | None

    def __init__(self, model: bytes, *, sentinels: int = 100, path: str = ""):
        """Raises DataError if `model` is not a sentencepiece model."""
        if not model:
            raise DataError(f"{path or 'the vocabulary'} is empty, not a sentencepiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"{path or 'the vocabulary'} is not a sentencepiece model") from error
        self.model = model
        self.path = str(path)
        self.sha256 = digest(model)
        self.pieces = self._processor.get_piece_size()
        for name in ("pad", "eos", "unk", "bos"):
            at = getattr(self._processor, f"{name}_id")()
            setattr(self, name, at if at >= 0 else None)
        for name in ("cls", "sep", "mask"):
            setattr(self, name, self._find(f"<{name}>", f"[{name.upper()}]"))
        own = [self._find(f"<extra_id_{k}>", f"▁<extra_id_{k}>") for k in range(sentinels)]
        if own and own[0] is not None:  # mT5's model holds its sentinels itself
            self.sentinels = np.array([at for at in own if at is not None], np.int32)
            self.size = self.pieces
        else:
            self.size = self.pieces + sentinels
            self.sentinels = np.arange(self.size - 1, self.pieces - 1, -1, dtype=np.int32)
        # What decoding spells out; pad, eos and bos are layout and stay silent.
        self._spelt = {int(at): f"<extra_id_{k}>" for k, at in enumerate(self.sentinels)}
        self._spelt |= {
            at: self._processor.id_to_piece(at)
            for at in (self.cls, self.sep, self.mask)
            if at is not None
        }

    def __reduce__(self):
        return _restore, (self.model, len(self.sentinels), self.path)

    def _find(self, *names: str) -> int | None:
        for name in names:
            at = self._processor.piece_to_id(name)
            if at != self._processor.unk_id():
                return at
        return None

    def encode(self, text: str) -> np.ndarray:
        """int32 [n] ids of `text`, without eos. Names of special pieces in the text are ordinary
        text.

        Raises:
          DataError: `text` has half a character (a lone surrogate).
        """
        return np.array(self.encode_batch([text])[0], np.int32)

    def encode_batch(self, texts: list[str], *, threads: int = 1) -> list[list[int]]:
        """Ids of each text, as the lists that sentencepiece makes; raises as `encode`."""
        try:
            return self._processor.encode(texts, num_threads=threads)
        except (UnicodeEncodeError, RuntimeError, TypeError) as error:
            for number, text in enumerate(texts):
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise DataError(
                        f"text {number} has a lone surrogate, half of a character"
                    ) from error
            raise

    def decode(self, ids) -> str:
        """The text of `ids`; sentinels, cls, sep and mask are spelt out, pad, eos and bos are
        silent.

        Raises:
          DataError: an id outside [0, size).
        """
        parts, run = [], []
        for at in np.asarray(ids).ravel().tolist():
            if not 0 <= at < self.size:
                raise DataError(f"token id {at} is outside the vocabulary [0, {self.size})")
            if at in self._spelt:
                parts += [self._decode_run(run), self._spelt[at]]
                run = []
            elif at not in (self.pad, self.eos, self.bos):
                run.append(at)
        return "".join([*parts, self._decode_run(run)]).removeprefix(" ")

    def _decode_run(self, run: list[int]) -> str:
        """As sentencepiece decodes, but a space in front survives: what follows a sentinel may go
        on with a word.
        """
        if not run:
            return ""
        space = self._processor.id_to_piece(run[0]).startswith("▁")
        return (" " if space else "") + self._processor.decode(run).removeprefix(" ")

    def piece(self, at: int) -> str:
        """The spelling of one id."""
        at = int(at)
        return self._spelt[at] if at >= self.pieces else self._processor.id_to_piece(at)

    def require(self, *names: str) -> None:
        """Refuse early if special ids that an objective needs are missing.

        Args:
          names: of `SPECIAL`, or "sentinels".

        Raises:
          ConfigError: naming what is missing.
        """
        missing = [
            n
            for n in names
            if (len(self.sentinels) == 0 if n == "sentinels" else getattr(self, n) is None)
        ]
        if missing:
            raise ConfigError(
                f"the vocabulary {self.path or self.sha256[:12]} has no {', '.join(missing)}, "
                "which the objective needs. `python -m flaxlm.data vocab` trains one that has; the "
                "number of sentinels is data.vocabulary.sentinels"
            )


def _restore(model: bytes, sentinels: int, path: str) -> Vocab:
    return Vocab(model, sentinels=sentinels, path=path)


def load_vocab(path: str | os.PathLike, *, sentinels: int = 100) -> Vocab:
    """Read a sentencepiece .model file.

    Raises:
      MissingInput: there is no such file.
      DataError: it is not a sentencepiece model.
    """
    path = Path(path).expanduser()
    try:
        model = path.read_bytes()
    except OSError as error:
        raise MissingInput(f"vocabulary {path}: {error.strerror}") from error
    return Vocab(model, sentinels=sentinels, path=os.fspath(path))


def train_vocab(texts: Iterable[str], spec: Vocabulary, *, names: str = "the sources") -> Vocab:
    """Train a sentencepiece model in this process, deterministically.

    The pieces 0 ... 6 are <pad> </s> <unk> <s> <cls> <sep> <mask>, then 256 bytes (nothing is ever
    unknown), then what was learned. From large texts a million sentences are drawn, uniformly from
    the first ten million.

    Args:
      texts: documents; each is used sentence by sentence.
      spec: size, kind, coverage and sentinels.
      names: of the sources, for messages.

    Raises:
      ConfigError: a size that these texts cannot fill or that cannot hold their characters; both
        say the limit.
      DataError: no text at all.
    """
    if spec.kind not in ("unigram", "bpe"):
        raise ConfigError(f"vocabulary kind {spec.kind!r}: unigram or bpe")
    sample = _sample(texts)
    if not sample:
        raise DataError(f"cannot train a vocabulary: there is no text in {names}")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
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
            max_sentence_length=4 * _LONGEST
            + 1,  # bytes; longer ones would be skipped without a word
            num_threads=_THREADS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise ConfigError(_explain(str(error), spec)) from error
    return Vocab(written.getvalue(), sentinels=spec.sentinels)


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
                part = sentence[start : start + _LONGEST].replace("\n", " ")
                seen += 1
                if len(kept) < _SAMPLE:
                    kept.append(part)
                elif (place := int(random.integers(seen))) < _SAMPLE:
                    kept[place] = part
        if seen >= _SEARCHED:
            break
    return kept


def _explain(message: str, spec: Vocabulary) -> str:
    """sentencepiece's complaint, in the user's terms."""
    if found := re.search(r"too high \(\d+\).*?<= (\d+)", message, re.S):
        return (
            f"vocabulary size {spec.size} is more than these texts can fill: at most {found[1]} "
            "(data.vocabulary.size, or --size)"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocabulary size {spec.size} cannot hold the characters of these texts: at least "
            f"{found[1]}, or a coverage below {spec.coverage} (data.vocabulary.size, or --size)"
        )
    return f"sentencepiece cannot train this vocabulary ({spec}): {message.splitlines()[-1]}"
