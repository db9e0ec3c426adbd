"""Make the goldens of tests/test_electra.py, test_distilbert.py and test_tinybert.py.

    python tests/parity/make_electra.py     (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from electra_cases import DISTILBERT, ELECTRA, TINYBERT, inputs, tensor

FOLDER = Path(__file__).parent


def _common(size: dict) -> dict:
    return dict(
        vocab_size=size["vocab"],
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        intermediate_size=size["mlp"],
        max_position_embeddings=size["length"],
        hidden_act="gelu",
        attn_implementation="eager",
    )


def electra(size: dict, name: str):
    config = transformers.ElectraConfig(
        **_common(size), embedding_size=size.get("embed_width") or size["width"]
    )
    return filled(getattr(transformers, name)(config))


def distilbert(size: dict):
    config = transformers.DistilBertConfig(
        vocab_size=size["vocab"],
        dim=size["width"],
        n_layers=size["depth"],
        n_heads=size["heads"],
        hidden_dim=size["mlp"],
        max_position_embeddings=size["length"],
        activation="gelu",
        attn_implementation="eager",
    )
    return filled(transformers.DistilBertForMaskedLM(config))


def tinybert(size: dict):
    return filled(transformers.BertForPreTraining(transformers.BertConfig(**_common(size))))


def filled(model):
    """The model in eval mode, its parameters as electra_cases.py says."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(name, tuple(parameter.shape))))
    return model.eval()


def run(model, batch: dict, *, types: bool) -> dict[str, np.ndarray]:
    """The outputs by flaxlm's names."""
    ids = {name: torch.from_numpy(batch[name].astype(np.int64)) for name in batch}
    more = {"token_type_ids": ids["types"]} if types else {}
    with torch.no_grad():
        out = model(ids["tokens"], ids["segments"], **more, output_hidden_states=True)
    found = {"hidden": out.hidden_states[-1], "embedded": out.hidden_states[0]}
    if isinstance(model, transformers.ElectraForPreTraining):
        found["replaced"] = out.logits
    elif isinstance(model, transformers.BertForPreTraining):
        found |= {"logits": out.prediction_logits, "pair_logits": out.seq_relationship_logits}
    else:
        found["logits"] = out.logits
    return {name: value.numpy() for name, value in found.items()}


MAKERS = {
    "electra_discriminator": (ELECTRA, lambda size: electra(size, "ElectraForPreTraining"), True),
    "electra_generator": (ELECTRA, lambda size: electra(size, "ElectraForMaskedLM"), True),
    "distilbert": (DISTILBERT, distilbert, False),
    "tinybert": (TINYBERT, tinybert, True),
}


def main():
    for name, (cases, make, types) in MAKERS.items():
        stored = {}
        for case, size in cases.items():
            model = make(size)
            batch = inputs(size, seed=ord(case))
            for key, value in model.state_dict().items():
                stored[f"{case}/shape/{key}"] = np.array(value.shape, np.int32)
            for key, value in run(model, batch, types=types).items():
                stored[f"{case}/out/{key}"] = value[:, ::5] if value.ndim == 3 else value
        np.savez_compressed(FOLDER / f"{name}.npz", **stored)


if __name__ == "__main__":
    main()
