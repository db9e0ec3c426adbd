"""The cases of the goldens of the heads for tasks, without torch: config.json of each, inputs, and
weights as a function of their names (those of bert_cases.py).
"""

import numpy as np
from bert_cases import tensor

_NUMBERS = dict(
    num_hidden_layers=2, hidden_size=20, intermediate_size=28, num_attention_heads=5,
    vocab_size=77, max_position_embeddings=23,
)  # fmt: skip
_FAMILIES = {
    "bert": ("Bert", dict(_NUMBERS, hidden_act="gelu_new", classifier_dropout=0.3)),
    "roberta": (
        "Roberta",
        dict(_NUMBERS, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1),
    ),
    "albert": ("Albert", dict(_NUMBERS, embedding_size=11, classifier_dropout_prob=0.2)),
    "electra": ("Electra", dict(_NUMBERS, embedding_size=12)),
    "distilbert": (
        "DistilBert",
        dict(
            n_layers=2, dim=20, hidden_dim=28, n_heads=5, vocab_size=77,
            max_position_embeddings=23, qa_dropout=0.25,
        ),
    ),
    "xlnet": (
        "XLNet",
        dict(n_layer=2, d_model=20, d_inner=28, n_head=5, vocab_size=77, ff_activation="gelu_new"),
    ),
    "gpt1": ("OpenAIGPT", dict(n_layer=2, n_embd=20, n_head=5, vocab_size=77, n_positions=23)),
    "gpt2": (
        "GPT2",
        dict(n_layer=2, n_embd=20, n_head=5, n_inner=28, vocab_size=77, n_positions=23),
    ),
    "bart": (
        "Bart",
        dict(
            encoder_layers=2, decoder_layers=1, d_model=20, encoder_ffn_dim=28, decoder_ffn_dim=28,
            encoder_attention_heads=5, decoder_attention_heads=5, vocab_size=77,
            max_position_embeddings=23, classifier_dropout=0.3,
        ),
    ),
    "t5": (
        "T5",
        dict(
            num_layers=2, d_model=20, d_kv=4, d_ff=28, num_heads=5, vocab_size=77,
            decoder_start_token_id=0,
        ),
    ),
    "t5v11": (
        "T5",
        dict(
            num_layers=1, d_model=20, d_kv=6, d_ff=28, num_heads=3, vocab_size=77,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, classifier_dropout=0.1,
        ),
    ),
}  # fmt: skip
_TYPES = {"gpt1": "openai-gpt", "t5v11": "t5"}
_ONLY = {  # of these not all heads are here
    "gpt1": ("classes",), "gpt2": ("classes",), "bart": ("classes", "spans"), "t5": ("classes",),
    "t5v11": ("classes",),
}  # fmt: skip
ENDS = {"bart": (2, 2, 1), "t5": (0, 1, 0)}  # decoder's start, end, padding
_HEADS = {
    "classes": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
}
CHOICES = 3


def _config(family: str, head: str) -> dict:
    name, numbers = _FAMILIES[family]
    simple = "Simple" if (family, head) == ("xlnet", "spans") else ""
    labels = {"num_labels": 4} if head in ("classes", "tags") else {}
    return {
        "model_type": _TYPES.get(family, family),
        "architectures": [name + _HEADS[head] + simple],
        **numbers,
        **labels,
    }


CONFIGS: dict[str, dict] = {
    f"{family}_{head}": _config(family, head)
    for family in _FAMILIES
    for head in _ONLY.get(family, _HEADS)
}


def inputs(config: dict) -> dict[str, np.ndarray]:
    """Features in flaxlm's names: six rows with two types, all but XLNet's padded at the end (its
    rows are read at their end, which theirs finds only where nothing is padded behind it). Those of
    decoders end in eos and are read once more, shifted.
    """
    rng = np.random.RandomState(len(config["architectures"][0]))
    length, place = 17, np.arange(17)
    lengths = np.array([9, 17, 5, 17, 12, 16])
    if config["model_type"] == "xlnet":
        lengths[:] = length
    segments = (place < lengths[:, None]).astype(np.int32)
    tokens = np.where(segments == 1, rng.randint(5, 77, segments.shape), 1)
    types = (place >= lengths[:, None] // 2) * segments * (config.get("type_vocab_size", 2) - 1)
    made = {
        "tokens": tokens.astype(np.int32),
        "segments": segments,
        "positions": (place * segments).astype(np.int32),
        "types": types.astype(np.int32),
    }
    if config["model_type"] in ENDS:
        start, end, pad = ENDS[config["model_type"]]
        tokens = np.where(place == lengths[:, None] - 1, end, np.where(segments, tokens, pad))
        made["tokens"] = tokens.astype(np.int32)
        shifted = np.where(place == 0, start, np.roll(made["tokens"], 1, axis=1))
        made["decoder_tokens"] = shifted.astype(np.int32)
        made |= {f"decoder_{name}": made[name] for name in ("segments", "positions")}
    return made


__all__ = ["CHOICES", "CONFIGS", "ENDS", "inputs", "tensor"]
