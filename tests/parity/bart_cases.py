"""The cases of the BART goldens, without torch: sizes, inputs, and weights as a function of their
names.

Weights are not stored: numpy's legacy generator draws the same numbers on every version, forever.
"""

import zlib

import numpy as np

# Odd on purpose: the stacks differ in depth, one has a single head, rows fill the tables.
SIZES = {
    "a": dict(depth=2, width=21, mlp=28, heads=3, vocab=77, decoder_depth=1, positions=19),
    "b": dict(depth=1, width=14, mlp=9, heads=1, vocab=128, decoder_depth=3, positions=50),
    "c": dict(depth=3, width=28, mlp=40, heads=7, vocab=130, positions=47),
}
LENGTHS = {"a": (3, 19, 11), "b": (2, 50, 41), "c": (4, 33, 47)}  # rows, encoder, decoder


def inputs(size: dict, lengths: tuple[int, int, int], *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names; the last row is full, the others end in padding, 1."""
    rng = np.random.default_rng(seed)
    rows, length, decoder_length = lengths
    features = {}
    for prefix, width in (("", length), ("decoder_", decoder_length)):
        real = np.append(rng.integers(1, width, rows - 1), width)
        segments = (np.arange(width) < real[:, None]).astype(np.int32)
        tokens = rng.integers(3, size["vocab"], (rows, width)).astype(np.int32)
        features[prefix + "tokens"] = np.where(segments, tokens, 1).astype(np.int32)
        features[prefix + "segments"] = segments
    return features


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter: norms are not one, biases not zero,
    attention is not uniform.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        return (name.endswith("weight") + 0.3 * noise).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * noise).astype(np.float32)
    if "embed" in name or "shared" in name:
        return (0.5 * noise).astype(np.float32)
    return (noise * (shape[0] * shape[1]) ** -0.25).astype(np.float32)
