"""Denoising, BART's objective (Lewis et al. 2020, section 2): the whole text from a corrupted one.

    text      The cat sat. On it went.
    input     <s> On <mask> went. The <mask> sat. </s>      sentences permuted, spans infilled
    target    <s> The cat sat. On it went. </s>
    decoder   </s> <s> The cat sat. On it went.             so the model predicts <s> too

Five kinds of noise, alone or together, in the published order: sentences change places, tokens are
masked, spans infilled, tokens deleted, masks inserted, and the text is rotated. The ends <s> and
</s> are never noised. Each is described in `objectives.noise`.

One thing differs from fairseq's program: it ends a sentence at every piece "." and nowhere else;
here sentences are those the corpus was split into.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flaxlm.batch import Features
from flaxlm.data.random import RowRandom
from flaxlm.data.rows import Rows
from flaxlm.errors import ConfigError
from flaxlm.objectives import noise
from flaxlm.objectives.base import Example
from flaxlm.objectives.sentence_permutation import permuted_sentences
from flaxlm.objectives.tokens import EncoderDecoderObjective, shift_right

_LONGEST_MEAN = 16.0  # the published table of lengths is empty from here on


@dataclass(frozen=True, kw_only=True)
class Denoising(EncoderDecoderObjective):
    """BART's denoising for an encoder-decoder. The defaults are those of the released models, but
    for their mean length of 3.5: the paper says 3.

    Attributes:
      permute: share of the sentences that change places among themselves.
      mask: share of the tokens that are masked.
      infill: share of the words that spans cover, each replaced by one <mask>.
      mean_length: mean words of a span, drawn from a Poisson distribution; empty ones are inserted
        masks.
      delete: share of the tokens that vanish.
      insert: tokens put in, as a share of the text's length.
      rotate: probability that the text is rotated.
      random: share of all masks that are a random piece instead.
    """

    packings: ClassVar[tuple[str, ...]] = ("sentences", "split")  # a row is of one document
    symbols: ClassVar[tuple[str, ...]] = ("pad", "bos", "eos", "mask")

    permute: float = 1.0
    mask: float = 0.0
    infill: float = 0.3
    mean_length: float = 3.0
    delete: float = 0.0
    insert: float = 0.0
    rotate: float = 0.0
    random: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name in ("permute", "mask", "infill", "delete", "insert", "rotate", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be in [0, 1]")
        if self.delete == 1:
            raise ConfigError("objective.delete=1.0 leaves no text; it must be below 1")
        if not 0 < self.mean_length <= _LONGEST_MEAN:
            raise ConfigError(
                f"objective.mean_length={self.mean_length} must be above 0 and at most "
                f"{_LONGEST_MEAN:g} (BART uses 3)"
            )
        if not any((self.permute, self.mask, self.infill, self.delete, self.insert, self.rotate)):
            raise ConfigError(
                "objective.permute, mask, infill, delete, insert and rotate are all 0: there is no "
                "noise to remove (BART uses permute=1.0, infill=0.3)"
            )

    def lengths(self, tokens: int) -> tuple[int, int]:
        """(input, target) positions of a window of `tokens` tokens, with their two ends.

        >>> Denoising().lengths(510)
        (512, 512)
        """
        return tokens + noise.most_inserted(tokens, self.insert) + 2, tokens + 2

    def window(self, length: int) -> int:
        """Raw tokens whose noised input has at most `length` positions: 510 for 512, unless
        tokens are inserted.
        """
        fitting = [tokens for tokens in range(1, length - 1) if self.lengths(tokens)[0] <= length]
        if not fitting:
            raise ConfigError(
                f"data.length={length} is too short for denoising: a text has two ends besides its "
                "tokens"
            )
        return fitting[-1]

    def prepare(self, rows: Rows, rng: RowRandom, vocab) -> Features:
        """Features of an encoder-decoder: tokens, segments, decoder_*, targets and weights.

        Every row is one text, whatever its segments. Inputs that infilling makes longer than the
        window, which takes many spans of length 0, lose their end.
        """
        real = rows.segments > 0
        width = rows.tokens.shape[1]
        original = noise.Texts(rows.tokens[real], np.asarray(rows.lengths, np.int64), width)
        texts = original
        if self.permute:
            order = permuted_sentences(rows, rng, share=self.permute)
            permuted = np.take_along_axis(rows.tokens, order, axis=1)
            texts = noise.Texts(permuted[real], texts.lengths, width)
        if self.mask:
            texts = noise.mask(texts, self.mask, self.random, rng, vocab)
        if self.infill:
            texts = noise.infill(texts, self.infill, self.mean_length, self.random, rng, vocab)
        if self.delete:
            texts = noise.delete(texts, self.delete, rng)
        if self.insert:
            texts = noise.insert(texts, self.insert, self.random, rng, vocab)
        if self.rotate:
            texts = noise.rotate(texts, self.rotate, rng)
        some = original.lengths > 0
        input_width, target_width = self.lengths(width)
        tokens, segments = _framed(texts, some, input_width, vocab)
        targets, decoder_segments = _framed(original, some, target_width, vocab)
        in_text = (decoder_segments > 0) & ~vocab.special.take(targets, mode="clip")
        return {
            "tokens": tokens,
            "segments": segments,
            "decoder_tokens": shift_right(targets, vocab.eos),
            "decoder_segments": decoder_segments,
            "targets": targets,
            "weights": decoder_segments.astype(np.float32),
            "text_weights": in_text.astype(np.float32),
        }

    def show(self, features: Features, vocab) -> list[Example]:
        return [
            Example(vocab.decode(tokens[segments > 0]), vocab.decode(targets[weights > 0]))
            for tokens, segments, targets, weights in zip(
                *(features[name] for name in ("tokens", "segments", "targets", "weights")),
                strict=True,
            )
        ]


def _framed(texts: noise.Texts, some: np.ndarray, width: int, vocab):
    """(ids, segments) [B, width] int32: <s>, the text, </s>, padding; `some` False: padding."""
    ends = np.where(some, texts.lengths + 2, 0)
    columns = np.arange(width)
    ids = np.full((len(ends), width), vocab.pad, np.int32)
    if texts.lengths.min(initial=width) == width - 2:
        ids[:, 1:-1] = texts.ids.reshape(-1, width - 2)
    else:
        ids[:, 1:-1][columns[:-2] < texts.lengths[:, None]] = texts.ids
    ids[some, 0] = vocab.bos
    ids[some, ends[some] - 1] = vocab.eos
    return ids, (columns < ends[:, None]).astype(np.int32)
