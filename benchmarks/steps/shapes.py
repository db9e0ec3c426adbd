"""What a training step is measured on: a family with its numbers, and one random batch of it.

A shape is a dict that travels to worker processes as JSON. Both sides make the same model of it and
read the same arrays.
"""

import numpy as np

# Families by the first word of `family`; "t5_v1_0" is the relu model with a tied readout.
FAMILIES = ("gpt2", "bert", "t5", "t5_v1_0")


def shape(family: str, width: int, depth: int, *, rows: int, length: int, vocab: int, **more):
    """A shape; heads of 64 channels and a feed-forward layer of 4 widths unless `more` says other.

    Args:
      family: one of FAMILIES.
      width, depth: of the model, an encoder-decoder has `depth` layers in each stack.
      rows, length: of the batch.
      more: heads, mlp; targets (positions of a decoder); slots (predicted positions of a row);
        dropout; dtype "float32" or "bfloat16" of activations and products, weights are float32.
    """
    assert family in FAMILIES, family
    made = {
        "family": family, "width": width, "depth": depth, "heads": width // 64, "mlp": 4 * width,
        "vocab": vocab, "rows": rows, "length": length, "targets": 0, "slots": 0, "dropout": 0.0,
        "dtype": "float32",
    }  # fmt: skip
    unknown = set(more) - set(made)
    assert not unknown, unknown
    return made | more


def tokens(shape: dict) -> int:
    """Positions of a batch, encoder and decoder together."""
    return shape["rows"] * (shape["length"] + shape["targets"])


def batch(shape: dict) -> dict[str, np.ndarray]:
    """Random ids. tokens [B, L]; targets [B, L], or [B, M] of a decoder; slots and slot_targets
    [B, slots] where the family predicts slots.
    """
    random = np.random.default_rng(0)
    rows, length = shape["rows"], shape["length"]

    def ids(count):
        return random.integers(2, shape["vocab"], (rows, count)).astype(np.int32)

    made = {"tokens": ids(length), "targets": ids(shape["targets"] or length)}
    if shape["slots"]:
        places = np.argsort(random.random((rows, length)), axis=1)[:, : shape["slots"]]
        made |= {"slots": np.sort(places, axis=1).astype(np.int32)}
        made |= {"slot_targets": ids(shape["slots"])}
    return made
