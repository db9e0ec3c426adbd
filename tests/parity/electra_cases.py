"""The cases of the ELECTRA, DistilBERT and TinyBERT goldens, without torch."""

import zlib

import numpy as np

# Odd on purpose: embeddings narrower, as wide and wider than the layers.
ELECTRA = {
    "a": dict(depth=2, width=21, mlp=34, heads=3, vocab=83, length=29, embed_width=10),
    "b": dict(depth=3, width=20, mlp=15, heads=5, vocab=131, length=40),
    "c": dict(depth=1, width=16, mlp=50, heads=2, vocab=128, length=33, embed_width=27),
}
DISTILBERT = {
    "a": dict(depth=2, width=21, mlp=34, heads=3, vocab=83, length=29),
    "b": dict(depth=3, width=20, mlp=15, heads=5, vocab=131, length=40),
    "c": dict(depth=1, width=16, mlp=50, heads=2, vocab=128, length=33),
}
TINYBERT = {
    "a": dict(depth=2, width=21, mlp=34, heads=3, vocab=83, length=29),
    "b": dict(depth=3, width=20, mlp=15, heads=5, vocab=131, length=40),
    "c": dict(depth=4, width=26, mlp=50, heads=2, vocab=128, length=33),
}
DROPOUT = dict(dropout=0.0, attention_dropout=0.0)


def inputs(size: dict, *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names: rows that end in padding, two token types."""
    rng = np.random.default_rng(seed)
    rows, length = 4, size["length"]
    real = np.append(rng.integers(2, length, rows - 1), length)
    segments = (np.arange(length) < real[:, None]).astype(np.int32)
    first = rng.integers(1, real)
    tokens = rng.integers(1, size["vocab"], (rows, length)).astype(np.int32)
    return {
        "tokens": tokens * segments,
        "segments": segments,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "types": ((np.arange(length) >= first[:, None]) * segments).astype(np.int32),
    }


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter, as a function of the name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "layer_norm" in name.lower() or "layernorm" in name.lower():
        return ((name.endswith("weight")) + 0.3 * noise).astype(np.float32)
    if "embeddings" in name or len(shape) == 1:
        return (0.5 * noise).astype(np.float32)
    return (noise * shape[-1] ** -0.5).astype(np.float32)
