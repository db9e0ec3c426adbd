"""Make the goldens of tests/test_gpt.py from transformers: inputs and outputs of small random GPTs.

    python tests/parity/make_gpt.py       (needs torch and transformers: pip install
    'flaxlm[parity]')

GPT-3 has no class there; GPT-Neo has its alternation of dense and banded layers. Made with
transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
from gpt_cases import LENGTHS, SIZES, inputs, tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

FOLDER = Path(__file__).parent


def _gpt1(size: dict):
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**_common(size)))


def _gpt2(size: dict):
    return GPT2LMHeadModel(GPT2Config(n_inner=size["mlp"], **_common(size)))


def _common(size: dict) -> dict:
    return dict(
        vocab_size=size["vocab"],
        n_positions=size["positions"],
        n_embd=size["width"],
        n_layer=size["depth"],
        n_head=size["heads"],
        attn_implementation="eager",
    )


def _gpt3(size: dict):
    kinds = [["global", "local"][layer % 2] for layer in range(size["depth"])]
    config = GPTNeoConfig(
        vocab_size=size["vocab"],
        max_position_embeddings=size["positions"],
        hidden_size=size["width"],
        intermediate_size=size["mlp"],
        num_layers=size["depth"],
        num_heads=size["heads"],
        attention_types=[[[kind], 1] for kind in kinds],
        window_size=size["band"],
        attn_implementation="eager",
    )
    assert config.attention_layers == kinds
    return GPTNeoForCausalLM(config)


BUILD = {"gpt1": _gpt1, "gpt2": _gpt2, "gpt3": _gpt3}


def build(family: str, size: dict):
    """A model with the weights of gpt_cases.py, in eval mode."""
    model = BUILD[family](size).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model


def outputs(model, features: dict) -> dict[str, np.ndarray]:
    """Logits and last hidden states."""
    tensors = {name: torch.from_numpy(array).long() for name, array in features.items()}
    with torch.no_grad():
        out = model(
            input_ids=tensors["tokens"],
            attention_mask=tensors["segments"],
            output_hidden_states=True,
        )
    return {"logits": out.logits.numpy(), "hidden": out.hidden_states[-1].numpy()}


def weights(model) -> dict[str, np.ndarray]:
    """The state by name, without the copies that tying makes."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def main() -> None:
    for name, size in SIZES.items():
        features = inputs(size, LENGTHS[name], seed=ord(name))
        golden = {"input/" + key: value for key, value in features.items()}
        for family in BUILD:
            model = build(family, size)
            for key, value in weights(model).items():
                golden[f"{family}/shape/{key}"] = np.array(value.shape, np.int32)
            for key, value in outputs(model, features).items():
                # Enough to catch any mistake: every 7th position of every row.
                golden[f"{family}/{key}"] = value[:, ::7]
        path = FOLDER / f"gpt_{name}.npz"
        np.savez_compressed(path, **golden)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
