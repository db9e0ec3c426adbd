"""The cases of the goldens of GPT-1, 2 and 3, without torch: sizes, inputs, and weights as a
function of their names.

Weights are not stored: numpy's legacy generator draws the same numbers on every version, forever.
"""

import zlib

import numpy as np

# Odd on purpose. GPT-1 takes 4 x width for mlp, as its published class; `band` is for GPT-3 alone.
SIZES = {
    "a": dict(depth=2, width=15, mlp=28, heads=3, head_dim=5, vocab=77, positions=19, band=4),
    "b": dict(depth=3, width=14, mlp=9, heads=1, head_dim=14, vocab=128, positions=64, band=1),
    "c": dict(depth=5, width=28, mlp=112, heads=7, head_dim=4, vocab=130, positions=50, band=17),
}
LENGTHS = {"a": (3, 19), "b": (2, 41), "c": (4, 33)}  # rows, positions


def inputs(size: dict, shape: tuple[int, int], *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names; the last row is full, the others end in padding."""
    rng = np.random.default_rng(seed)
    rows, length = shape
    real = np.append(rng.integers(1, length, rows - 1), length)
    segments = (np.arange(length) < real[:, None]).astype(np.int32)
    return {
        "tokens": rng.integers(1, size["vocab"], shape).astype(np.int32) * segments,
        "segments": segments,
        "positions": np.arange(length, dtype=np.int32) * segments,
    }


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter: norms are not one, biases not zero,
    attention is not uniform.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "ln_" in name or "norm" in name:
        return (name.endswith("weight") + 0.3 * noise).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * noise).astype(np.float32)
    if "embed" in name or ".wte" in name or ".wpe" in name:
        return (0.5 * noise).astype(np.float32)
    return (noise * (shape[0] * shape[1]) ** -0.25).astype(np.float32)


def banded_as_dense(tensors: dict, size: dict) -> dict[str, np.ndarray]:
    """Tensors of a GPT-Neo under GPT-2's names. GPT-Neo does not scale its scores, so the queries
    take it in; its projections are Linears without biases for query, key and value.
    """
    scale = np.float32(size["head_dim"] ** 0.5)
    found = {}
    for name, array in tensors.items():
        start, attention, part = name.partition("attn.attention.")
        if attention and part != "out_proj.bias":
            if part == "out_proj.weight":
                found[f"{start}attn.c_proj.weight"] = array.T
            elif part == "q_proj.weight":
                three = [tensors[name.replace("q_proj", f"{x}_proj")].T for x in "qkv"]
                three[0] = three[0] * scale
                found[f"{start}attn.c_attn.weight"] = np.concatenate(three, axis=1)
                found[f"{start}attn.c_attn.bias"] = np.zeros(3 * size["width"], np.float32)
        elif attention:
            found[f"{start}attn.c_proj.bias"] = array
        else:
            found[name] = array.T if ".mlp." in name and array.ndim == 2 else array
    return found
