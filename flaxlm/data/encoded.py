"""Rows made of the examples of a task: encoded once, kept as arrays, read by number.

`N` rows of a set of examples, `B` of a batch, `W` positions, `G` texts side by side in a row (the
endings of a multiple choice), each W / G wide and padded by itself.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """All rows of a set of examples.

    Attributes:
      tokens: [N, W] integers; what lies behind a text does not matter.
      types: [N, W] uint8, as the feature `types`.
      lengths: [N, G] tokens of each text.
      example: [N] place of each row's example in the set, ascending; a long one has several rows.
      targets: {feature: [N, ...]}: what is to be learned, with its weights.
      notes: {name: value}: what turning outputs into answers needs besides, on the host.
    """

    tokens: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    example: np.ndarray
    targets: Mapping[str, np.ndarray]
    notes: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.example)

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
        *,
        length: int,
        example: Sequence[int],
        targets: Mapping[str, np.ndarray],
        notes: Mapping[str, object] | None = None,
    ) -> "Encoded":
        """Of ragged rows.

        Args:
          rows: of each row its G texts, each (ids, types).
          length: positions of a text, W / G; none may be longer.
        """
        groups = len(rows[0])
        tokens = np.zeros((len(rows), groups, length), np.int32)
        types = np.zeros(tokens.shape, np.uint8)
        lengths = np.zeros((len(rows), groups), np.int32)
        for row, texts in enumerate(rows):
            for group, (ids, kinds) in enumerate(texts):
                assert len(ids) <= length, f"{len(ids)} tokens in a row of {length}"
                tokens[row, group, : len(ids)] = ids
                types[row, group, : len(ids)] = kinds
                lengths[row, group] = len(ids)
        width = groups * length
        if tokens.size and tokens.max() < 1 << 16:  # a set of examples stays in memory
            tokens = tokens.astype(np.uint16)
        return cls(
            tokens.reshape(len(rows), width),
            types.reshape(len(rows), width),
            lengths,
            np.asarray(example, np.int64),
            targets,
            notes or {},
        )


class ExampleRows:
    """Rows of a batch, as `flaxlm.data.rows.Rows`, with all their features.

    Attributes:
      index: [B] what the rows are called.
      features: tokens, segments, positions, types [B, W] and the targets. In a row of padding, and
        behind every text, segments and all targets are 0.
    """

    partners: "tuple[ExampleRows, ...]" = ()
    window: np.ndarray  # these two are set by who knows them
    epoch: np.ndarray

    def __init__(self, encoded: Encoded, place: np.ndarray, *, index: np.ndarray, pad: int):
        """`place`: [B] rows of `encoded`; -1 makes a row of padding alone."""
        real = np.asarray(place) >= 0
        at = np.where(real, place, 0)
        self.index, self._example = index, np.where(real, encoded.example[at], -1)
        lengths = encoded.lengths[at] * real[:, None]
        count, groups = lengths.shape
        width = encoded.tokens.shape[1]
        place_in_text = np.arange(width // groups, dtype=np.int32)
        inside = place_in_text < lengths[..., None]
        positions = (place_in_text * inside).astype(np.int32).reshape(count, width)
        inside = inside.reshape(count, width)
        # The texts of a row are segments of their own.
        number = np.repeat(np.arange(1, groups + 1, dtype=np.int32), width // groups)
        targets = {
            name: np.where(real.reshape(-1, *[1] * (x.ndim - 1)), x[at], 0).astype(x.dtype)
            for name, x in encoded.targets.items()
        }
        self.features = {
            "tokens": np.where(inside, encoded.tokens[at], pad).astype(np.int32),
            "segments": number * inside,
            "positions": positions,
            "types": (encoded.types[at] * inside).astype(np.int32),
            **targets,
        }

    def __len__(self) -> int:
        return len(self.index)

    @property
    def tokens(self) -> np.ndarray:
        return self.features["tokens"]

    @property
    def documents(self) -> list[np.ndarray]:
        """Place of each row's example in its set."""
        return [np.array([at] if at >= 0 else [], np.int64) for at in self._example.tolist()]


class MixedExampleRows:
    """Rows of a batch that come from several sets of examples, as `ExampleRows`."""

    partners: "tuple[ExampleRows, ...]" = ()
    window: np.ndarray
    epoch: np.ndarray

    def __init__(self, index: np.ndarray, parts: Sequence[tuple[np.ndarray, ExampleRows]]):
        """`parts`: (places in the batch, rows that belong there), which together fill the batch."""
        self.index, self._parts = index, parts

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        joined = {}
        for name, first in self._parts[0][1].features.items():
            joined[name] = np.empty((len(self.index), *first.shape[1:]), first.dtype)
            for places, rows in self._parts:
                joined[name][places] = rows.features[name]
        return joined

    @property
    def tokens(self) -> np.ndarray:
        return self.features["tokens"]
