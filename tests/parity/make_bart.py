"""Make the goldens of tests/test_bart.py from transformers: inputs and outputs of small random
BARTs.

    python tests/parity/make_bart.py      (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
from bart_cases import LENGTHS, SIZES, inputs, tensor
from transformers import BartConfig, BartForConditionalGeneration

FOLDER = Path(__file__).parent


def build(size: dict) -> BartForConditionalGeneration:
    """A BART with the weights of bart_cases.py, in eval mode."""
    config = BartConfig(
        vocab_size=size["vocab"],
        d_model=size["width"],
        max_position_embeddings=size["positions"],
        encoder_layers=size["depth"],
        decoder_layers=size.get("decoder_depth") or size["depth"],
        encoder_ffn_dim=size["mlp"],
        decoder_ffn_dim=size["mlp"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        attn_implementation="eager",
    )
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not model.final_logits_bias.any()
    return model


def outputs(model: BartForConditionalGeneration, features: dict) -> dict[str, np.ndarray]:
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


def weights(model: BartForConditionalGeneration) -> dict[str, np.ndarray]:
    """The state by name, without the copies that tying makes."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def main() -> None:
    for name, size in SIZES.items():
        features = inputs(size, LENGTHS[name], seed=ord(name))
        golden = {"input/" + key: value for key, value in features.items()}
        model = build(size)
        for key, value in weights(model).items():
            golden[f"shape/{key}"] = np.array(value.shape, np.int32)
        for key, value in outputs(model, features).items():
            # Enough to catch any mistake: every 7th position of every row.
            golden[key] = value[:, ::7]
        path = FOLDER / f"bart_{name}.npz"
        np.savez_compressed(path, **golden)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
