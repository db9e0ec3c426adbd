"""Every feature a batch can hold: name, axes, dtype, meaning. The one contract between objectives
and models.

An objective makes features, a model reads them; neither imports the other. `B` rows, `L` positions,
`M` decoder positions. Axis names are those of `flaxlm.sharding`, so this table also says how a
batch is laid over the mesh.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxlm.errors import DataError

Batch = Mapping[str, Any]  # feature name -> numpy or jax array
Features = dict[str, np.ndarray]


@dataclass(frozen=True)
class Feature:
    axes: tuple[str, ...]  # names of the dims, as in sharding.RULES
    dtype: type
    meaning: str
    ids: bool = False  # values are token ids: checked on the host to lie in [0, vocabulary size)


_POSITIONS = ("batch", "length")
_SLOTS = ("batch", "slots")

FEATURES: dict[str, Feature] = {
    "tokens": Feature(
        _POSITIONS, np.int32, "input token ids of the encoder or the only stack", ids=True
    ),
    "segments": Feature(
        _POSITIONS,
        np.int32,
        "1, 2, ... for the packed texts of a row, 0 for padding; no attention between them",
    ),
    "positions": Feature(_POSITIONS, np.int32, "position of each token inside its segment, from 0"),
    "prefix": Feature(
        _POSITIONS,
        np.int32,
        "1 where a causal stack may look ahead: keys seen by every query of the segment",
    ),
    "decoder_tokens": Feature(
        _POSITIONS,
        np.int32,
        "decoder input ids: the targets shifted right, first token the start id",
        ids=True,
    ),
    "decoder_segments": Feature(
        _POSITIONS, np.int32, "as `segments`, for the decoder; pairs with `segments`"
    ),
    "decoder_positions": Feature(_POSITIONS, np.int32, "as `positions`, for the decoder"),
    "targets": Feature(
        _POSITIONS, np.int32, "the id to predict at each (decoder) position", ids=True
    ),
    "weights": Feature(_POSITIONS, np.float32, "weight of each target in the loss; 0 on padding"),
    "text_weights": Feature(
        _POSITIONS, np.float32, "1 where the target is a piece of text: no padding, eos or sentinel"
    ),
    "types": Feature(
        _POSITIONS, np.int32, "0 for the first text of a pair with its specials, 1 for the second"
    ),
    "slots": Feature(
        _SLOTS, np.int32, "positions whose tokens a masked model predicts; 0 where not in use"
    ),
    "slot_targets": Feature(_SLOTS, np.int32, "the id to predict at each slot", ids=True),
    "slot_weights": Feature(_SLOTS, np.float32, "1 for a slot in use, 0 for one that is not"),
    "order": Feature(
        _POSITIONS, np.int32, "place of a token in the order of a permutation; see `reach`"
    ),
    "reach": Feature(
        _POSITIONS, np.int32, "a position sees those whose `order` is below this, and itself"
    ),
    "labels": Feature(("batch",), np.int32, "class of the row, such as: is B the text after A"),
    "label_weights": Feature(("batch",), np.float32, "weight of the row's label; 0 without text"),
    "memory": Feature(
        ("batch", "layers", "memory", "width"),
        np.float32,
        "inputs of each layer at the end of the segment before; carried from step to step",
    ),
}


def check_features(features: Features, *, vocab_size: int, rows: np.ndarray | None = None) -> None:
    """Check a batch made on the host against `FEATURES`: names, ranks, dtypes, id ranges.

    Devices clamp or poison an out-of-range id without a word, so the range is checked here, before
    the transfer.

    Args:
      features: name -> array with the row dim first.
      vocab_size: ids must be in [0, vocab_size).
      rows: global row numbers, to name the offending row.

    Raises:
      DataError: naming feature, row, position and id.
      AssertionError: if an objective makes a feature that the table does not declare that way (our
        own mistake).
    """
    for name, array in features.items():
        feature = FEATURES.get(name)
        assert feature is not None, f"feature {name!r} is not in flaxlm.batch.FEATURES"
        assert array.ndim == len(feature.axes), (
            f"{name}: rank {array.ndim}, declared {feature.axes}"
        )
        assert array.dtype == feature.dtype, (
            f"{name}: {array.dtype}, declared {np.dtype(feature.dtype)}"
        )
        if feature.ids and array.size and (array.min() < 0 or array.max() >= vocab_size):
            where = np.argwhere((array < 0) | (array >= vocab_size))[0]
            row = where[0] if rows is None else rows[where[0]]
            raise DataError(
                f"row {row}, {name}{list(where[1:])}: token id {array[tuple(where)]} is outside "
                f"the model's vocabulary "
                f"[0, {vocab_size}). The corpus was made with another vocabulary, or "
                f"model.size.vocab is too small"
            )
