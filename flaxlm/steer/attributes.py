"""What a text is led to. `B` rows, `D` width, `V` vocabulary, `C` classes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import safetensors
from flaxlm.errors import DataError

SMALL = 1e-15


class Hidden(NamedTuple):
    """What an attribute looks at.

    Attributes:
      probabilities: [B, V] of the next token.
      past: [B, D] sum of the hidden states of the text.
      count: [B] tokens of it.
      ahead: [B, D] hidden state after the next token, which is put in as the mean of all
        embeddings by their probabilities.
    """

    probabilities: jax.Array
    past: jax.Array
    count: jax.Array
    ahead: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bag:
    """Words that are to become likely (section 3.2): - log of the sum of their probabilities.

    Attributes:
      ids: [W] the words that are one token with a space before them.
      weight: of the loss.
    """

    ids: jax.Array
    weight: jax.Array | float = 1.0

    remembers: ClassVar[bool] = True  # steps are divided by the largest norm so far

    @classmethod
    def of(cls, vocab, words: Iterable[str], *, weight: float = 1.0) -> "Bag":
        """Of words.

        Raises:
          DataError: none of them is one token.
        """
        words = [word.strip() for word in words if word.strip()]
        spelt = [vocab.encode(f" {word}") for word in words]
        ids = sorted({int(ids[0]) for ids in spelt if len(ids) == 1})
        if not ids:
            raise DataError(f"no word of {', '.join(words[:5])}... is one token of the vocabulary")
        return cls(jnp.asarray(ids, jnp.int32), weight)

    @classmethod
    def read(cls, vocab, path: str | Path, *, weight: float = 1.0) -> "Bag":
        """Of a text file with a word on every line."""
        try:
            return cls.of(vocab, Path(path).read_text(encoding="utf-8").split("\n"), weight=weight)
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path}: {error}") from error

    def loss(self, hidden: Hidden) -> jax.Array:
        """[B]."""
        found_B = jnp.take(hidden.probabilities, self.ids, axis=1).sum(axis=1)
        return -jnp.log(found_B + SMALL)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """A class that is to become likely (section 3.3): its cross-entropy under a linear head.

    Attributes:
      kernel: [D, C].
      bias: [C].
      label: the class.
      weight: of the loss; below 0 it leads away.
    """

    kernel: jax.Array
    bias: jax.Array
    label: jax.Array | int
    weight: jax.Array | float = 1.0

    remembers: ClassVar[bool] = False

    @classmethod
    def read(cls, path: str | Path, label: int, *, weight: float = 1.0) -> "Head":
        """Of a safetensors file with "mlp.weight" [C, D] and "mlp.bias" [C], the published names.

        Raises:
          DataError: the file has no such arrays, or no such class.
        """
        found = {name: np.asarray(array) for name, array in safetensors.read(Path(path)).items()}
        if {"mlp.weight", "mlp.bias"} - found.keys():
            raise DataError(f"{path}: expected mlp.weight and mlp.bias, found {', '.join(found)}")
        kernel, bias = found["mlp.weight"].T, found["mlp.bias"]
        if not 0 <= label < len(bias):
            raise DataError(f"{path}: label {label} of {len(bias)} classes")
        return cls(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32), label, weight)

    def loss(self, hidden: Hidden) -> jax.Array:
        """[B]."""
        mean_BD = (hidden.past + hidden.ahead) / (hidden.count + 1)[:, None]
        return -jax.nn.log_softmax(self.logits(mean_BD))[:, self.label]

    def logits(self, mean_BD: jax.Array) -> jax.Array:
        """[B, C] fp32."""
        return mean_BD.astype(jnp.float32) @ self.kernel + self.bias[None]


Attribute = Bag | Head
