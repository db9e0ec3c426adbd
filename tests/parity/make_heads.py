"""Make heads.npz, the golden logits of tests/test_heads.py, from transformers: small random models.

    python tests/parity/make_heads.py      (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from heads_cases import CHOICES, CONFIGS, ENDS, inputs, tensor

FOLDER = Path(__file__).parent


def build(config: dict):
    """The model of a config.json with the weights of bert_cases.py, in eval mode."""
    kind = transformers.AutoConfig.for_model(**config, attn_implementation="eager")
    model = getattr(transformers, config["architectures"][0])(kind).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    return model


def weights(model) -> dict[str, np.ndarray]:
    """The parameters by name."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def logits(model, features: dict[str, np.ndarray]) -> np.ndarray:
    """What the head says, in the shape of ours."""
    tensors = {name: torch.from_numpy(array).long() for name, array in features.items()}
    given = dict(input_ids=tensors["tokens"], attention_mask=tensors["segments"])
    kind = model.config.model_type
    if kind in ("gpt2", "openai-gpt"):  # without padding, of which they would have to know the id
        lengths = features["segments"].sum(1)
        with torch.no_grad():
            rows = [
                model(row[None, :n]).logits
                for row, n in zip(given["input_ids"], lengths, strict=True)
            ]
        return torch.cat(rows).numpy()
    if kind not in ("distilbert", *ENDS):
        given["token_type_ids"] = tensors["types"]
    choice = type(model).__name__.endswith("MultipleChoice")
    if choice:
        given = {name: x.view(-1, CHOICES, x.shape[1]) for name, x in given.items()}
    with torch.no_grad():
        out = model(**given)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], dim=-1).numpy()
    return out.logits.reshape(-1, 1).numpy() if choice else out.logits.numpy()


def main() -> None:
    golden = {name: logits(build(config), inputs(config)) for name, config in CONFIGS.items()}
    path = FOLDER / "heads.npz"
    np.savez_compressed(path, **golden)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
