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
    # What is looked up in a table lies in [0, below), checked on the host: "vocab" is the size of
    # the vocabulary, "length" the width of the row, "slots" that of the feature. None is only ever
    # compared.
    below: str | int | None = None


_POSITIONS = ("batch", "length")
_SLOTS = ("batch", "slots")

FEATURES: dict[str, Feature] = {
    "tokens": Feature(
        _POSITIONS, np.int32, "input token ids of the encoder or the only stack", below="vocab"
    ),
    "segments": Feature(
        _POSITIONS,
        np.int32,
        "1, 2, ... for the packed texts of a row, 0 for padding; no attention between them",
    ),
    "positions": Feature(
        _POSITIONS, np.int32, "position of each token inside its segment, from 0", below="length"
    ),
    "prefix": Feature(
        _POSITIONS,
        np.int32,
        "1 where a causal stack may look ahead: keys seen by every query of the segment",
        below=2,
    ),
    "decoder_tokens": Feature(
        _POSITIONS,
        np.int32,
        "decoder input ids: the targets shifted right, first token the start id",
        below="vocab",
    ),
    "decoder_segments": Feature(
        _POSITIONS, np.int32, "as `segments`, for the decoder; pairs with `segments`"
    ),
    "decoder_positions": Feature(
        _POSITIONS, np.int32, "as `positions`, for the decoder", below="length"
    ),
    "targets": Feature(
        _POSITIONS, np.int32, "the id to predict at each (decoder) position", below="vocab"
    ),
    "weights": Feature(_POSITIONS, np.float32, "weight of each target in the loss; 0 on padding"),
    "text_weights": Feature(
        _POSITIONS, np.float32, "1 where the target is a piece of text: no padding, eos or sentinel"
    ),
    "types": Feature(
        _POSITIONS,
        np.int32,
        "0 for the first text of a pair with its specials, 1 for the second, 2 for XLNet's [CLS]",
        below=3,
    ),
    "slots": Feature(
        _SLOTS,
        np.int32,
        "positions whose tokens a masked model predicts; 0 where not in use",
        below="length",
    ),
    "slot_targets": Feature(_SLOTS, np.int32, "the id to predict at each slot", below="vocab"),
    "slot_weights": Feature(_SLOTS, np.float32, "1 for a slot in use, 0 for one that is not"),
    "order": Feature(
        _POSITIONS, np.int32, "place of a token in the order of a permutation; see `reach`"
    ),
    "reach": Feature(
        _POSITIONS, np.int32, "a position sees those whose `order` is below this, and itself"
    ),
    "labels": Feature(
        ("batch",), np.int32, "class of the row: is B the text after A, or not", below=2
    ),
    "label_weights": Feature(("batch",), np.float32, "weight of the row's label; 0 without text"),
    "column": Feature(
        (), np.int32, "where the tokens stand among the segments, in a step of generation alone"
    ),
    "classes": Feature(("batch",), np.int32, "the row's class in a task, from 0"),
    "scores": Feature(("batch",), np.float32, "the row's number in a task"),
    "tags": Feature(_POSITIONS, np.int32, "class of each token in a task, from 0"),
    "span_starts": Feature(
        ("batch",), np.int32, "position at which the row's answer begins", below="length"
    ),
    "span_ends": Feature(
        ("batch",), np.int32, "position of the last token of the row's answer", below="length"
    ),
    "words": Feature(_SLOTS, np.int32, "1 for a slot with a word or, the first, the root", below=2),
    "word_starts": Feature(
        _SLOTS, np.int32, "position of a word's first piece, of the root's symbol", below="length"
    ),
    "word_ends": Feature(
        _SLOTS, np.int32, "position of a word's last piece, of the root's symbol", below="length"
    ),
    "word_tags": Feature(
        _SLOTS, np.int32, "part of speech of a word; of the root, the number of these", below=256
    ),
    "heads": Feature(_SLOTS, np.int32, "slot of a word's head", below="slots"),
    "relations": Feature(_SLOTS, np.int32, "class of a word's relation to its head, from 0"),
    "word_weights": Feature(_SLOTS, np.float32, "weight of a word's head and relation"),
    "memory": Feature(
        ("batch", "layers", "memory", "width"),
        np.float32,
        "inputs of each layer at the end of the segment before; carried from step to step",
    ),
}


def check_features(
    features: Features,
    *,
    vocab_size: int,
    rows: np.ndarray | None = None,
    tables: Mapping[str, int] | None = None,
) -> None:
    """Check a batch made on the host against `FEATURES`: names, ranks, dtypes, ranges of integers.

    Devices clamp or poison what points outside of a table without a word, so ranges are checked
    here, before the transfer.

    Args:
      features: name -> array with the row dim first.
      vocab_size: ids must be in [0, vocab_size).
      rows: global row numbers, to name the offending row.
      tables: {feature: rows of the model's table that it is looked up in}, where that is less than
        `FEATURES` allows.

    Raises:
      DataError: naming feature, row, position and value.
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
        if (below := feature.below) is not None:
            if tables and name in tables:
                below = tables[name]
            elif below == "vocab":
                below = vocab_size
            elif below == "length":
                own = feature.axes == _POSITIONS  # others point into the row of tokens
                below = features[name if own else "tokens"].shape[1]
            elif below == "slots":
                below = array.shape[1]
            check_range(name, array, below, rows=rows)


def check_range(
    name: str, array: np.ndarray, below: int, *, rows: np.ndarray | None = None
) -> None:
    """Check that the integers [B, ...] of a feature lie in [0, below).

    Raises:
      DataError: naming row, position and value of the first that does not.
    """
    # Seen as unsigned, what is negative is large: one pass finds both.
    if not array.size or array.view(np.uint32).max() < below:
        return
    where = np.argwhere(array.view(np.uint32) >= below)[0]
    row = where[0] if rows is None else rows[where[0]]
    place, value = [int(at) for at in where[1:]], int(array[tuple(where)])
    if FEATURES[name].below == "vocab":
        raise DataError(
            f"row {row}, {name}{place}: token id {value} is outside the model's vocabulary "
            f"[0, {below}). The corpus was made with another vocabulary, or model.size.vocab is "
            "too small"
        )
    raise DataError(f"row {row}, {name}{place}: {value} is outside [0, {below})")
