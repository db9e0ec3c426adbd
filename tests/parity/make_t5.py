"""Make the goldens of tests/test_t5.py from transformers: inputs and outputs of small random T5s.

    python tests/parity/make_t5.py        (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
from t5_cases import LENGTHS, SIZES, inputs, tensor
from transformers import T5Config, T5ForConditionalGeneration

FOLDER = Path(__file__).parent


def build(size: dict, *, v1_1: bool) -> T5ForConditionalGeneration:
    """A T5 with the weights of t5_cases.py, in eval mode."""
    config = T5Config(
        vocab_size=size["vocab"],
        d_model=size["width"],
        d_kv=size["head_dim"],
        d_ff=size["mlp"],
        num_layers=size["depth"],
        num_decoder_layers=size.get("decoder_depth") or size["depth"],
        num_heads=size["heads"],
        relative_attention_num_buckets=size.get("buckets", 32),
        relative_attention_max_distance=size.get("max_distance", 128),
        feed_forward_proj="gated-gelu" if v1_1 else "relu",
        tie_word_embeddings=not v1_1,
        attn_implementation="eager",
    )
    model = T5ForConditionalGeneration(config).eval()
    if v1_1:  # the config class ties the readout whatever one asks for
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        model.config.scale_decoder_outputs = False
    assert (model.lm_head.weight is model.shared.weight) == model.config.scale_decoder_outputs
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    return model


def outputs(model: T5ForConditionalGeneration, features: dict) -> dict[str, np.ndarray]:
    """Logits and last hidden states of both stacks."""
    tensors = {name: torch.from_numpy(array).long() for name, array in features.items()}
    with torch.no_grad():
        out = model(
            input_ids=tensors["tokens"],
            attention_mask=tensors["segments"],
            decoder_input_ids=tensors["decoder_tokens"],
            decoder_attention_mask=tensors["decoder_segments"],
            output_hidden_states=True,
        )
    return {
        "logits": out.logits.numpy(),
        "hidden": out.decoder_hidden_states[-1].numpy(),
        "encoder": out.encoder_last_hidden_state.numpy(),
    }


def weights(model: T5ForConditionalGeneration) -> dict[str, np.ndarray]:
    """The state by name, without the copies that tying makes."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def main() -> None:
    for name, size in SIZES.items():
        features = inputs(size, LENGTHS[name], seed=ord(name))
        golden = {"input/" + key: value for key, value in features.items()}
        for version in ("v1_0", "v1_1"):
            model = build(size, v1_1=version == "v1_1")
            for key, value in weights(model).items():
                golden[f"{version}/shape/{key}"] = np.array(value.shape, np.int32)
            for key, value in outputs(model, features).items():
                # Enough to catch any mistake: every 7th position of every row.
                golden[f"{version}/{key}"] = value[:, ::7]
        path = FOLDER / f"t5_{name}.npz"
        np.savez_compressed(path, **golden)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
