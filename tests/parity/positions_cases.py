"""The cases of the goldens of the position encodings, without torch.

Weights are not stored: numpy's legacy generator draws the same numbers on every version, forever.
"""

import zlib

import numpy as np

# What is turned: rows, positions, heads, head dim; GPT-J and GPT-NeoX turn a part of the channels.
HEADS = (2, 23, 3, 24)
SHARES = {"llama": 1.0, "neox": 0.25, "gptj": 0.5, "roformer": 1.0}
SINUSOIDS = {"distilbert": (70, 17), "fairseq": (70, 17)}  # positions, width
SLOPES = (1, 2, 3, 4, 7, 8, 12, 16, 20, 71)  # numbers of heads

# Whole models: pre-norm layers with a final norm, which only differ in how they know positions.
MODELS = {
    "neox": dict(depth=2, width=32, mlp=20, heads=2, vocab=61),
    "bloom": dict(depth=2, width=15, mlp=60, heads=5, vocab=61),
}
NAMES = {
    "neox": {
        "layers": "gpt_neox.layers",
        "attention": "attention",
        "embed": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
    },
    "bloom": {
        "layers": "transformer.h",
        "attention": "self_attention",
        "embed": "transformer.word_embeddings",
        "norm": "transformer.ln_f",
    },
}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 noise as a function of a name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return noise.astype(np.float32)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of a whole model: norms are not one, biases not zero, attention is not uniform."""
    noise = values(name, shape)
    if "norm" in name or "ln_f" in name:
        return (name.endswith("weight") + 0.3 * noise).astype(np.float32)
    if len(shape) == 1:
        return 0.3 * noise
    return noise if "embed" in name else noise * np.float32(1.2 * shape[1] ** -0.5)


def inputs(vocab: int) -> dict[str, np.ndarray]:
    """Features of two rows, the first with padding."""
    segments = np.ones((2, 29), np.int32)
    segments[0, 21:] = 0
    tokens = np.random.RandomState(0).randint(1, vocab, (2, 29)).astype(np.int32)
    positions = np.tile(np.arange(29, dtype=np.int32), (2, 1))
    return {"tokens": tokens, "segments": segments, "positions": positions}


def params(family: str, tensors: dict, size: dict) -> dict:
    """Our parameters. Theirs are Linears; query, key and value of a head stand together."""
    names, heads = NAMES[family], size["heads"]

    def norm(name):
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def three(array):
        parts = array.reshape(heads, 3, -1, *array.shape[1:])
        return [parts[:, i].reshape(-1, *array.shape[1:]).T for i in range(3)]

    def layer(start):
        attention, mlp = f"{start}.{names['attention']}", f"{start}.mlp"
        joint = (three(tensors[f"{attention}.query_key_value.{x}"]) for x in ("weight", "bias"))
        kernels, biases = joint
        ours = dict(zip(("query", "key", "value"), kernels, strict=True))
        ours |= dict(zip(("query_bias", "key_bias", "value_bias"), biases, strict=True))
        ours |= {"out": tensors[f"{attention}.dense.weight"].T}
        ours |= {"out_bias": tensors[f"{attention}.dense.bias"]}
        return {
            "attention": ours,
            "attention_norm": norm(f"{start}.input_layernorm"),
            "mlp_norm": norm(f"{start}.post_attention_layernorm"),
            "mlp": {
                "in": tensors[f"{mlp}.dense_h_to_4h.weight"].T,
                "in_bias": tensors[f"{mlp}.dense_h_to_4h.bias"],
                "out": tensors[f"{mlp}.dense_4h_to_h.weight"].T,
                "out_bias": tensors[f"{mlp}.dense_4h_to_h.bias"],
            },
        }

    def stacked(trees):
        if isinstance(trees[0], dict):
            return {key: stacked([tree[key] for tree in trees]) for key in trees[0]}
        return np.stack(trees)

    table = tensors[f"{names['embed']}.weight"]
    found = {
        "embed": {"table": np.pad(table, ((0, -len(table) % 128), (0, 0)))},
        "layers": stacked([layer(f"{names['layers']}.{i}") for i in range(size["depth"])]),
        "norm": norm(names["norm"]),
    }
    if family == "bloom":
        found["positions"] = {"norm": norm(f"{names['embed']}_layernorm")}
    return found
