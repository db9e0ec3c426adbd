"""Make the goldens of tests/test_xlnet.py from transformers: inputs and outputs of small random
XLNets.

    python tests/parity/make_xlnet.py        (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, float32 (in float64 the two streams fail there).
"""

from pathlib import Path

import numpy as np
import torch
from transformers import XLNetConfig, XLNetLMHeadModel
from xlnet_cases import SHAPES, SIZES, hidden_from, inputs, tensor

FOLDER = Path(__file__).parent


def build(size: dict, activation: str = "gelu_new") -> XLNetLMHeadModel:
    """An XLNet with the weights of xlnet_cases.py, in eval mode."""
    config = XLNetConfig(
        vocab_size=size["vocab"],
        d_model=size["width"],
        n_layer=size["depth"],
        n_head=size["heads"],
        d_head=size["head_dim"],
        d_inner=size["mlp"],
        ff_activation=activation,
        mem_len=size["memory"],
        reuse_len=size.get("reuse"),
    )
    model = XLNetLMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    return model


def outputs(model: XLNetLMHeadModel, features: dict) -> dict[str, np.ndarray]:
    """ "two/...": both streams with permutation, slots and memory; "one/...": the content stream
    alone, without memory, padding out of sight.
    """
    tensors = {
        name: torch.from_numpy(array) if name == "memory" else torch.from_numpy(array).long()
        for name, array in features.items()
    }
    unseen, chosen = map(torch.from_numpy, hidden_from(features))
    shared = dict(
        input_ids=tensors["tokens"], token_type_ids=tensors["types"], output_hidden_states=True
    )
    with torch.no_grad():
        two = model(
            **shared,
            perm_mask=unseen,
            target_mapping=chosen,
            mems=list(tensors["memory"].permute(1, 2, 0, 3)),
            use_mems=True,
        )
        one = model(**shared, attention_mask=tensors["segments"].float(), use_mems=False)
    return {
        "two/logits": two.logits.numpy(),
        "two/hidden": two.hidden_states[-2].numpy(),  # both streams of each layer, in turn
        "two/memory": torch.stack(list(two.mems)).permute(2, 0, 1, 3).numpy(),
        "one/logits": one.logits.numpy(),
        "one/hidden": one.hidden_states[-1].numpy(),
    }


def weights(model: XLNetLMHeadModel) -> dict[str, np.ndarray]:
    """The state by name, without the copy that tying makes."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def main() -> None:
    for name, size in SIZES.items():
        features = inputs(size, SHAPES[name], seed=ord(name))
        model = build(size)
        golden = {"input/" + key: value for key, value in features.items()}
        for key, value in weights(model).items():
            golden[f"shape/{key}"] = np.array(value.shape, np.int32)
        golden |= outputs(model, features)
        path = FOLDER / f"xlnet_{name}.npz"
        np.savez_compressed(path, **golden)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
