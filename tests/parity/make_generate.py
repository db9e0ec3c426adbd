"""Make the goldens of tests/test_generate_parity.py from transformers: what `generate` says to 50
prompts with small random models, those of one length at a time: nothing is padded.

    python tests/parity/make_generate.py  (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import bart_cases
import gpt_cases
import make_bart
import make_gpt
import make_t5
import numpy as np
import t5_cases
import torch
from generate_cases import FAMILIES, LIMIT, SETTINGS, START, prompts
from transformers import GenerationConfig

FOLDER = Path(__file__).parent


def build(family: str):
    """The model of a family, in eval mode."""
    if family == "gpt2":
        return make_gpt.build("gpt2", gpt_cases.SIZES["c"])
    if family == "bart":
        model = make_bart.build(bart_cases.SIZES["c"])
        model.generation_config.forced_eos_token_id = None  # else every answer ends in one
        return model
    return make_t5.build(t5_cases.SIZES["c"], v1_1=family == "t5_v1_1")


def answers(model, prompts: list[list[int]], settings: dict, eos: int | None) -> list[list[int]]:
    """The new tokens, the end of text included."""
    config = GenerationConfig(
        max_new_tokens=LIMIT, do_sample=False, eos_token_id=eos, pad_token_id=0,
        decoder_start_token_id=START, bos_token_id=START, **settings,
    )  # fmt: skip
    found = {}
    for length in {len(prompt) for prompt in prompts}:
        numbers = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[number] for number in numbers])
        with torch.no_grad():
            rows = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        start = 1 if model.config.is_encoder_decoder else length
        for number, row in zip(numbers, rows[:, start:].tolist(), strict=True):
            found[number] = row[: row.index(eos) + 1] if eos in row else row
    return [found[number] for number in range(len(prompts))]


def frequent(model) -> int:
    """A token that this model comes to say in about half of its answers: their end."""
    found = answers(model, prompts(), {}, None)
    counts = np.bincount([token for ids in found for token in set(ids[2:])])
    return int(np.abs(counts - len(found) / 2).argmin())


def main() -> None:
    torch.set_num_threads(1)
    golden = {}
    for family in FAMILIES:
        model = build(family)
        model.generation_config.eos_token_id = None
        eos = frequent(model)
        golden[f"{family}/eos"] = np.array(eos, np.int16)
        for name, settings in SETTINGS.items():
            found = answers(model, prompts(), settings, eos)
            rows = [ids + [-1] * (LIMIT - len(ids)) for ids in found]
            golden[f"{family}/{name}"] = np.array(rows, np.int16)
            print(family, name, "ended:", sum(len(ids) < LIMIT for ids in found), flush=True)
    path = FOLDER / "generate.npz"
    np.savez_compressed(path, **golden)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
