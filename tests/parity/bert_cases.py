"""The cases of the goldens of BERT, RoFormer, RoBERTa and ALBERT, without torch: config.json,
inputs, and weights as a function of their names.

Weights are not stored: numpy's legacy generator draws the same numbers on every version, forever.
"""

import zlib

import numpy as np

# Odd on purpose: sizes that no model has, vocabularies under and over a multiple of 128.
_A = dict(
    num_hidden_layers=2, hidden_size=20, intermediate_size=28, num_attention_heads=5,
    vocab_size=77, max_position_embeddings=23,
)  # fmt: skip
_B = dict(
    num_hidden_layers=1, hidden_size=14, intermediate_size=9, num_attention_heads=1,
    vocab_size=128, max_position_embeddings=41,
)  # fmt: skip
_C = dict(
    num_hidden_layers=3, hidden_size=24, intermediate_size=40, num_attention_heads=3,
    vocab_size=130, max_position_embeddings=37,
)  # fmt: skip
_ROBERTA = dict(
    model_type="roberta", architectures=["RobertaForMaskedLM"], type_vocab_size=1,
    layer_norm_eps=1e-5, pad_token_id=1,
)  # fmt: skip


def _bert(numbers, architecture="BertForPreTraining", **more):
    return dict(model_type="bert", architectures=[architecture], **numbers) | more


def _roformer(numbers, **more):
    named = dict(model_type="roformer", architectures=["RoFormerForMaskedLM"])
    return named | numbers | more


def _albert(numbers, architecture="AlbertForPreTraining", **more):
    return dict(model_type="albert", architectures=[architecture], **numbers) | more


CONFIGS: dict[str, dict] = {
    "bert_a": _bert(_A, hidden_act="gelu_new"),
    "bert_b": _bert(_B, hidden_act="gelu", layer_norm_eps=1e-3),
    "bert_c": _bert(_C, hidden_act="gelu_new", type_vocab_size=3),
    "bert_masked": _bert(_A, "BertForMaskedLM"),
    "bert_bare": _bert(_C, "BertModel"),
    "roformer_a": _roformer(_A, embedding_size=20),
    "roformer_b": _roformer(_B, embedding_size=11, hidden_act="gelu_new"),
    "roformer_c": _roformer(_C, embedding_size=30),
    "roberta_a": _A | _ROBERTA,
    "roberta_b": _B | _ROBERTA,
    "roberta_c": _C | _ROBERTA,
    "roberta_bare": _A | _ROBERTA | dict(architectures=["RobertaModel"]),
    "albert_a": _albert(_A, embedding_size=11),
    "albert_b": _albert(_B, embedding_size=14, hidden_act="gelu"),
    "albert_c": _albert(_C, embedding_size=30, type_vocab_size=3),
    "albert_masked": _albert(_C, "AlbertForMaskedLM", embedding_size=7),
    "albert_bare": _albert(_A, "AlbertModel", embedding_size=7),
}

# A row of position 0 is not the table's first: RoBERTa's has two rows before it.
_LONGEST = {"roberta": 2}


def inputs(config: dict, *, seed: int) -> dict[str, np.ndarray]:
    """Random features in flaxlm's names: three rows, of which the last is as long as the table
    allows; the others end in padding, all have two types.
    """
    rng = np.random.default_rng(seed)
    length = config["max_position_embeddings"] - _LONGEST.get(config["model_type"], 0)
    lengths = np.append(rng.integers(length // 3, length, 2), length)
    place = np.arange(length)
    segments = (place < lengths[:, None]).astype(np.int32)
    pad = config.get("pad_token_id", 0)
    tokens = rng.integers(pad + 1, config["vocab_size"], segments.shape)
    types = (place >= lengths[:, None] // 2) * segments * (config.get("type_vocab_size", 2) - 1)
    return {
        "tokens": np.where(segments == 1, tokens, pad).astype(np.int32),
        "segments": segments,
        "positions": (place * segments).astype(np.int32),
        "types": types.astype(np.int32),
    }


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 values that make every part of the model matter: norms are not one, biases not zero,
    attention is not uniform.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name.lower() and name.endswith("weight"):
        return (1 + 0.3 * noise).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * noise).astype(np.float32)
    return (noise * (1.0 if "embeddings" in name else shape[-1] ** -0.5)).astype(np.float32)
