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
}  # fmt: skip
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
        "model_type": family,
        "architectures": [name + _HEADS[head] + simple],
        **numbers,
        **labels,
    }


CONFIGS: dict[str, dict] = {
    f"{family}_{head}": _config(family, head) for family in _FAMILIES for head in _HEADS
}


def inputs(config: dict) -> dict[str, np.ndarray]:
    """Features in flaxlm's names: six rows with two types, all but XLNet's padded at the end (its
    rows are read at their end, which theirs finds only where nothing is padded behind it).
    """
    rng = np.random.RandomState(len(config["architectures"][0]))
    length, place = 17, np.arange(17)
    lengths = np.array([9, 17, 5, 17, 12, 16])
    if config["model_type"] == "xlnet":
        lengths[:] = length
    segments = (place < lengths[:, None]).astype(np.int32)
    tokens = np.where(segments == 1, rng.randint(5, 77, segments.shape), 1)
    types = (place >= lengths[:, None] // 2) * segments * (config.get("type_vocab_size", 2) - 1)
    return {
        "tokens": tokens.astype(np.int32),
        "segments": segments,
        "positions": (place * segments).astype(np.int32),
        "types": types.astype(np.int32),
    }


__all__ = ["CHOICES", "CONFIGS", "inputs", "tensor"]
