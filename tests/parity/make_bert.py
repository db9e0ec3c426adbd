"""Make the goldens of tests/test_{bert,roberta,albert}.py from transformers: inputs and outputs of
small random models.

    python tests/parity/make_bert.py      (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from bert_cases import CONFIGS, inputs, tensor

FOLDER = Path(__file__).parent


def build(config: dict):
    """The model of a config.json with the weights of bert_cases.py, in eval mode."""
    kind = transformers.AutoConfig.for_model(**config, attn_implementation="eager")
    model = getattr(transformers, config["architectures"][0])(kind).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:  # the sines of rotary positions
                weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    return model


def outputs(model, features: dict) -> dict[str, np.ndarray]:
    """By our names: hidden states, and logits, pooled and pair_logits where the model has them."""
    tensors = {name: torch.from_numpy(array).long() for name, array in features.items()}
    body = getattr(model, model.base_model_prefix, model)
    given = dict(
        input_ids=tensors["tokens"],
        attention_mask=tensors["segments"],
        token_type_ids=tensors["types"],
    )
    with torch.no_grad():
        inner = body(**given, output_hidden_states=True)
        out = model(**given) if body is not model else {}
    found = {
        "hidden": inner.last_hidden_state,
        "embedded": inner.hidden_states[0],
        "pooled": inner.get("pooler_output"),
        "logits": out.get("prediction_logits", out.get("logits")),
        "pair_logits": out.get("seq_relationship_logits", out.get("sop_logits")),
    }
    return {name: value.numpy() for name, value in found.items() if value is not None}


def weights(model) -> dict[str, np.ndarray]:
    """The state by name, without the copies that tying makes and the sines."""
    return {
        name: weight.detach().numpy()
        for name, weight in model.named_parameters()
        if "embed_positions" not in name
    }


def main() -> None:
    for name, config in CONFIGS.items():
        features = inputs(config, seed=len(name))
        golden = {"input/" + key: value for key, value in features.items()}
        model = build(config)
        for key, value in weights(model).items():
            golden["shape/" + key] = np.array(value.shape, np.int32)
        for key, value in outputs(model, features).items():
            # Enough to catch any mistake: every 5th position of every row.
            golden[key] = value[:, ::5] if value.ndim == 3 else value
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **golden)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
