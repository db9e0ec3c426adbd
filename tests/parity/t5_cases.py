"""The cases of the T5 goldens, without torch: sizes, inputs, and weights as a function of their
names.

Weights are not stored: numpy's legacy generator draws the same numbers on every version, forever.
"""

import zlib

import numpy as np

# Odd on purpose: heads x head_dim is not the width, the stacks differ in depth, distances reach the
# last buckets.
SIZES = {
    "a": dict(depth=2, width=20, mlp=28, heads=3, head_dim=5, vocab=77, decoder_depth=1),
    "b": dict(depth=1, width=13, mlp=9, heads=1, head_dim=16, vocab=128, decoder_depth=3),
    "c": dict(
        depth=3, width=24, mlp=40, heads=5, head_dim=4, vocab=130, buckets=14, max_distance=30
    ),
}
LENGTHS = {"a": (3, 19, 11), "b": (2, 150, 140), "c": (4, 33, 47)}  # rows, encoder, decoder


def inputs(size: dict, lengths: tuple[int, int, int], *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names; the last row is full, the others end in padding."""
    rng = np.random.default_rng(seed)
    rows, length, decoder_length = lengths
    features = {}
    for prefix, width in (("", length), ("decoder_", decoder_length)):
        real = np.append(rng.integers(1, width, rows - 1), width)
        segments = (np.arange(width) < real[:, None]).astype(np.int32)
        tokens = rng.integers(1, size["vocab"], (rows, width)).astype(np.int32)
        features[prefix + "tokens"] = tokens * segments
        features[prefix + "segments"] = segments
    return features


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter: norms are not one, attention is not
    uniform.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "layer_norm" in name:
        return (1 + 0.3 * noise).astype(np.float32)
    if "relative_attention_bias" in name or name == "shared.weight":
        return noise.astype(np.float32)
    return (noise * shape[-1] ** -0.5).astype(np.float32)
