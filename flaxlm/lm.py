"""`LM`: a model with its parameters and its vocabulary, ready to score batches of numpy arrays, to
write and to fill in masks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.batch import FEATURES, Features
from flaxlm.convert.families import family_of_model, parts_of
from flaxlm.convert.tokenizer import Template
from flaxlm.data.vocab_base import Vocab
from flaxlm.decode import prompts as decoding
from flaxlm.decode.fill import Filled, fill
from flaxlm.decode.prompts import Answer, Prompt, Reader
from flaxlm.decode.settings import Settings
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.losses import Readout
from flaxlm.nn.compute import Compute
from flaxlm.nn.stack import apart
from flaxlm.step import ByName, MissingName
from flaxlm.weights import read_weights


@dataclass(frozen=True)
class LM:
    """A model ready to be called.

    Attributes:
      model: the module; it computes in fp32 unless `load` was told otherwise.
      params: its parameters.
      vocab: its vocabulary.
      path: where they were read.
    """

    model: nn.Module
    params: Any
    vocab: Vocab | None
    path: Path

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The model's outputs by name, without dropout; logits are [..., vocabulary] fp32.

        Args:
          batch: the features that the model reads (flaxlm.batch.FEATURES), all of them; `batch`
            makes one from texts. Compiled once per set of shapes.

        Raises:
          MissingInput: the model reads a feature that is not there, naming it.
          DataError: a feature is unknown, or of a wrong rank, type or range.
        """
        checked = {name: _feature(name, x, self.model.size.vocab) for name, x in batch.items()}
        _check_shapes(checked, self.model)
        try:
            found = self._apply(self.params, checked)
        except MissingName as error:
            raise MissingInput(f"{type(self.model).__name__}: {error}") from None
        return {name: np.asarray(x) for name, x in found.items()}

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        targets: Sequence[str] | None = None,
        length: int = 0,
        template: Template | None = None,
    ) -> Features:
        """Texts as a batch: tokens, segments, positions and types [B, L], padded at the end.

        What stands around a text is what the family's tokenizer in transformers puts there. Names
        of special symbols in a text ([MASK], <mask>, <extra_id_0>) are these symbols.

        Args:
          texts: one per row.
          pairs: second texts, where rows are pairs.
          targets: what a decoder is to say: adds decoder_tokens (shifted right, behind the start
            symbol), decoder_segments and decoder_positions.
          length: of the rows; 0: the longest decides.
          template: what to put around a text, where the model's family has no converter.

        Raises:
          MissingInput: the model came without a vocabulary.
          ConfigError: no template, the vocabulary lacks a symbol of it, or a row is too long.
        """
        if self.vocab is None:
            raise MissingInput(f"{self.path} has no vocabulary: make the batch from ids")
        if template is None:
            part, _ = next(iter(parts_of(self.model, self.params).values()))
            template = family_of_model(part).TOKENIZER
        sides = [texts, pairs] if pairs is not None else [texts]
        encoded = [[self.vocab.encode(text, specials=True) for text in side] for side in sides]
        rows = [template.around(self.vocab, *row) for row in zip(*encoded, strict=True)]
        made = self._padded("", [ids for ids, _ in rows], length)
        made["types"] = np.zeros_like(made["tokens"])
        for at, (_, types) in enumerate(rows):
            made["types"][at, : len(types)] = types
        if targets is not None:
            if not template.start:
                raise ConfigError(f"{type(self.model).__name__} has no decoder: no targets")
            self.vocab.require(template.start)
            start = getattr(self.vocab, template.start)
            spelt = [self.vocab.encode(text, specials=True) for text in targets]
            whole = [template.around(self.vocab, ids)[0] for ids in spelt]
            made |= self._padded("decoder_", [np.append(start, ids[:-1]) for ids in whole], length)
        return made

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: Settings | None = None,
        *,
        prefixes: Sequence[Prompt] = (),
        seed: int = 0,
        rows: int = 16,
        eos: int | None = None,
        start: int | None = None,
    ) -> list[Answer]:
        """What the model says to each prompt, with its ids and their log-likelihood.

        An answer depends on its prompt, its number in the list, the settings and the seed, not on
        the other prompts. Compiled once per settings and bucket of shapes (flaxlm.decode.prompts).

        Args:
          prompts: texts, around which the family's tokenizer puts its symbols, or ids as they are.
          settings: how; None: `Settings()`, greedy.
          prefixes: what each answer begins with, as texts or ids; (): nothing is given.
          rows: prompts at a time.
          eos: the id that ends an answer; None: the vocabulary's end of text.
          start: the id that a decoder begins with; None: what the family's does.

        Raises:
          ConfigError: the model does not generate, or a prompt is too long for it.
          MissingInput: prompts are texts and there is no vocabulary.
          DataError: a prompt is empty, or an id is outside of the vocabulary.
        """
        if prefixes and len(prefixes) != len(prompts):
            raise ConfigError(f"{len(prefixes)} prefixes for {len(prompts)} prompts")
        if rows < 1:
            raise ConfigError(f"rows={rows}: at least 1")
        return decoding.generate(
            Reader.of(self._decoder, self.vocab, eos=eos, start=start),
            self._decoder_params,
            prompts,
            settings or Settings(),
            prefixes=prefixes or [""] * len(prompts),
            seed=seed,
            rows=rows,
        )

    def stream(
        self,
        prompt: Prompt,
        settings: Settings | None = None,
        *,
        prefix: Prompt = "",
        seed: int = 0,
    ) -> Iterator[str]:
        """The text of `generate` for one prompt, piece by piece as it is made; raises likewise."""
        reader = Reader.of(self._decoder, self.vocab)
        return decoding.stream(
            reader,
            self._decoder_params,
            prompt,
            settings or Settings(),
            prefix=prefix,
            seed=seed,
        )

    def fill(self, texts: Sequence[str], *, top: int = 5) -> list[list[list[Filled]]]:
        """For every text, for every mask in it ([MASK], <mask>), the `top` most likely tokens.

        Raises:
          ConfigError: the model is none that fills in, or its vocabulary has no mask.
          DataError: a text has no mask.
        """
        return fill(self, texts, top=top)

    @cached_property
    def _decoder(self) -> nn.Module:
        """The model as it generates: a loop over layers copies their parameters on a CPU."""
        compute = replace(self.model.compute, remat="none")
        if jax.default_backend() == "cpu":
            compute = replace(compute, scan=False)
        return self.model.clone(compute=compute, parent=None)

    @cached_property
    def _decoder_params(self):
        """The parameters as `_decoder` reads them."""
        return apart(self.params) if jax.default_backend() == "cpu" else self.params

    def _padded(self, prefix: str, rows: list[np.ndarray], length: int) -> Features:
        longest = max(map(len, rows), default=0)
        if length and longest > length:
            raise ConfigError(f"length={length}: a row has {longest} tokens")
        shape = (len(rows), length or longest)
        pad = self.vocab.eos if self.vocab.pad is None else self.vocab.pad
        tokens = np.full(shape, pad, np.int32)
        segments = np.zeros(shape, np.int32)
        for at, ids in enumerate(rows):
            tokens[at, : len(ids)] = ids
            segments[at, : len(ids)] = 1
        positions = np.arange(shape[1], dtype=np.int32) * segments
        names = {"tokens": tokens, "segments": segments, "positions": positions}
        return {prefix + name: array for name, array in names.items()}

    @cached_property
    def _apply(self) -> Callable:
        return jax.jit(lambda params, batch: outputs(self.model, params, batch))


def outputs(model: nn.Module, params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What a model returns without dropout, readouts computed, padding of the vocabulary cut off.

    Raises:
      MissingName: the model reads a feature that `batch` lacks.
    """
    found = model.apply({"params": params}, ByName("feature", batch), train=False)
    return {
        name: x.logits()[..., : x.vocab] if isinstance(x, Readout) else x
        for name, x in found.items()
    }


def load(path: str | Path, *, model: nn.Module | None = None, compute: Compute | None = None) -> LM:
    """A model of a run directory (trained or converted) or of a Hugging Face folder.

    Of a training run: the newest checkpoint that verifies, averaged parameters where it keeps some.
    Whatever dtype a file has, parameters are fp32.

    Args:
      path: the folder.
      model: the module, where the run's is not one of flaxlm's own: no code that a file names is
        executed.
      compute: how to compute; None: `Compute()`, fp32, however the run was trained.

    Raises:
      MissingInput, DataError, ConfigError, StorageError: see `flaxlm.weights.read_weights`.
    """
    found = read_weights(path, model=model)
    computing = found.model.clone(compute=compute or Compute(), parent=None)
    return LM(computing, jax.tree.map(jnp.asarray, found.params), found.vocab, found.path)


def _feature(name: str, value, vocab: int) -> np.ndarray:
    """One feature as FEATURES declares it; integers of another width are taken if they fit."""
    if name not in FEATURES:
        raise DataError(
            f"batch[{name!r}]: no feature has that name; there are {', '.join(FEATURES)}"
        )
    declared, array = FEATURES[name], np.asarray(value)
    if array.ndim != len(declared.axes):
        raise DataError(f"batch[{name!r}] has shape {list(array.shape)}, not {declared.axes}")
    wanted = np.dtype(declared.dtype)
    same_kind = array.dtype.kind in ("iub" if wanted.kind == "i" else "iubf")
    if not same_kind:
        raise DataError(f"batch[{name!r}] is {array.dtype}, not {wanted}")
    upper = vocab if declared.below == "vocab" else 2**31
    if wanted.kind == "i" and array.size and not (0 <= array.min() and array.max() < upper):
        raise DataError(
            f"batch[{name!r}] has values from {array.min()} to {array.max()}, not in [0, {upper})"
        )
    return array.astype(wanted)


def _check_shapes(batch: Features, model: nn.Module) -> None:
    """Dims of one name are of one size, and no row is longer than the model's positions."""
    sizes: dict[tuple[str, str], tuple[str, int]] = {}
    for name, array in ((name, batch[name]) for name in FEATURES if name in batch):
        side = "decoder" if name.startswith("decoder_") else ""
        for axis, size in zip(FEATURES[name].axes, array.shape, strict=True):
            key = ("" if axis == "batch" else side, axis)
            first, known = sizes.setdefault(key, (name, size))
            if known != size:
                raise DataError(f"batch: {axis} is {known} in {first!r}, {size} in {name!r}")
    longest = getattr(model, "longest", None)
    for (_, axis), (name, size) in sizes.items():
        if axis == "length" and longest is not None and size > longest:
            raise DataError(f"batch[{name!r}] is {size} long, the model has {longest} positions")
