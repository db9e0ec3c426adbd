"""The cases of the XLNet goldens, without torch: sizes, inputs, and weights as a function of their
names.
"""

import zlib

import numpy as np

# Odd on purpose; `memory` and `reuse` as in the Size, 0 positions to reuse are all.
SIZES = {
    "a": dict(depth=2, width=20, mlp=28, heads=5, head_dim=4, vocab=77, memory=5, reuse=4),
    "b": dict(depth=1, width=18, mlp=9, heads=1, head_dim=18, vocab=128, memory=13),
    "c": dict(depth=3, width=24, mlp=40, heads=3, head_dim=8, vocab=130, memory=9, reuse=7),
}
SHAPES = {"a": (3, 11, 4), "b": (2, 6, 6), "c": (2, 17, 5)}  # rows, length, slots


def inputs(size: dict, shape: tuple[int, int, int], *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names; the last row is full, the others end in padding."""
    rng = np.random.default_rng(seed)
    rows, length, slots = shape
    real = np.append(rng.integers(length // 2, length, rows - 1), length)
    segments = (np.arange(length) < real[:, None]).astype(np.int32)
    order = rng.permuted(np.tile(np.arange(length) - length // 3, (rows, 1)), axis=1)
    order = np.maximum(order, -1)  # a third is seen by all
    reach = np.where(rng.random(order.shape) < 0.5, order, order + 1)
    places = rng.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :slots]
    memory = rng.standard_normal((rows, size["depth"], size["memory"], size["width"]))
    features = {
        "tokens": rng.integers(1, size["vocab"], (rows, length)),
        "segments": segments,
        "types": np.sort(rng.integers(0, 3, (rows, length)), axis=1),
        "order": order,
        "reach": reach,
        "slots": places,
    }
    features = {name: array.astype(np.int32) for name, array in features.items()}
    return features | {"memory": memory.astype(np.float32)}


def hidden_from(features: dict) -> tuple[np.ndarray, np.ndarray]:
    """What transformers takes for order, reach and slots: perm_mask [B, L, L], 1 where a position
    may not see another, and target_mapping [B, P, L].
    """
    order, reach, slots = (features[name] for name in ("order", "reach", "slots"))
    unseen = reach[:, :, None] <= order[:, None, :]
    chosen = slots[:, :, None] == np.arange(order.shape[1])
    return unseen.astype(np.float32), chosen.astype(np.float32)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("layer_norm.weight"):
        return (1 + 0.3 * noise).astype(np.float32)
    if name.endswith(("bias", "seg_embed", "mask_emb", "word_embedding.weight")):
        return (0.7 * noise).astype(np.float32)
    return (noise * shape[0] ** -0.5).astype(np.float32)
