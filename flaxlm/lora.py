"""What of a model learns: everything, or low-rank changes of some matrices (LoRA, Hu et al. 2021).

With `LoRA` the model computes with W + alpha / rank * A B in place of a matrix W [in, out]. A [in,
rank] is normal and B [rank, out] zero at first, so that the run begins with the model as it is; A
and B learn, W stays. No model knows of it: the parameters of a state are the model's own and,
below "lora", A and B of each matrix by its path. Gradients and the optimizer's state are those of
what learns alone, W + ... is made anew in every step, and whoever reads the run gets it merged.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm.errors import ConfigError
from flaxlm.named import Named

DELTAS = "lora"  # where A and B stand in the tree of parameters


class Everything:
    """All parameters of a model learn: they are what it computes with."""

    def extended(self, boxed: Mapping, *, seed: int) -> Mapping:
        """A tree of `named.Named` with what learns beside it."""
        return boxed

    def split(self, params: Mapping) -> tuple[Mapping, Mapping]:
        """(what learns, what stays as it is) of the parameters of a state."""
        return params, {}

    def joined(self, learned: Mapping, kept: Mapping) -> Mapping:
        """The inverse of `split`."""
        return learned

    def merged(self, params: Mapping) -> Mapping:
        """What the model computes with."""
        return params


EVERYTHING = Everything()


@dataclass(frozen=True)
class LoRA(Everything):
    """Low-rank changes of some matrices learn, all else stays.

    Attributes:
      rank: columns of A, rows of B.
      alpha: over rank, what A B is multiplied with.
      on: which matrices, by the ends of their paths; published: query and value.
      train: paths of parts that learn as a whole, such as a new head.
    """

    rank: int = 8
    alpha: float = 16.0
    on: tuple[str, ...] = ("attention/query", "attention/value")
    train: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha={self.alpha}: must be above 0")

    def extended(self, boxed, *, seed):
        """Raises:
        ConfigError: a name is of nothing that the model has, or of no matrix.
        """
        flat = flatten_dict(dict(boxed), sep="/")
        found = {}
        for name in self.on:
            paths = [path for path in flat if path == name or path.endswith(f"/{name}")]
            if not paths:
                raise ConfigError(f"lora.on: no parameter ends in {name!r}; {_matrices(flat)}")
            for path in paths:
                if not _is_matrix(flat[path].axes):
                    raise ConfigError(f"lora.on: {path} is no matrix; {_matrices(flat)}")
                found |= self._deltas(path, flat[path], seed)
        for name in self.train:
            if not any(_covers(name, path) for path in flat):
                tops = ", ".join(sorted(boxed))
                raise ConfigError(f"lora.train: no parameters {name!r}; at the top are {tops}")
        return {**boxed, DELTAS: unflatten_dict(found, sep="/")}

    def _deltas(self, path: str, matrix: Named, seed: int) -> dict[str, Named]:
        (*layers, ins, outs), (*names, axis_in, axis_out) = matrix.value.shape, matrix.axes
        # Of the path and the seed alone, whichever other matrices learn.
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{DELTAS}/{path}".encode()))
        a = jax.random.normal(key, (*layers, ins, self.rank)) * ins**-0.5
        b = jnp.zeros((*layers, self.rank, outs))
        return {
            f"{path}/a": Named(a, (*names, axis_in, "rank")),
            f"{path}/b": Named(b, (*names, "rank", axis_out)),
        }

    def split(self, params):
        sides = {}, {}
        for path, leaf in flatten_dict(dict(params), sep="/").items():
            learns = any(_covers(name, path) for name in (DELTAS, *self.train))
            sides[not learns][path] = leaf
        learned, kept = (unflatten_dict(side, sep="/") for side in sides)
        return learned, kept

    def joined(self, learned, kept):
        both = flatten_dict(dict(learned), sep="/") | flatten_dict(dict(kept), sep="/")
        return unflatten_dict(both, sep="/")

    def merged(self, params):
        flat = flatten_dict({name: x for name, x in params.items() if name != DELTAS}, sep="/")
        deltas = flatten_dict(dict(params[DELTAS]), sep="/")
        for path in {name.rpartition("/")[0] for name in deltas}:
            change = deltas[f"{path}/a"] @ deltas[f"{path}/b"]
            flat[path] = flat[path] + self.alpha / self.rank * change
        return unflatten_dict(flat, sep="/")


def _covers(part: str, path: str) -> bool:
    return path == part or path.startswith(f"{part}/")


def _is_matrix(axes: tuple[str, ...]) -> bool:
    return len([name for name in axes if name != "layers"]) == 2


def _matrices(flat: Mapping[str, Named]) -> str:
    """The matrices of layers there are, for messages."""
    found = [p for p, x in flat.items() if _is_matrix(x.axes) and x.axes[0] == "layers"]
    ends = sorted({path.rpartition("layers/")[2] for path in found})
    return f"matrices of the layers: {', '.join(ends)}"
