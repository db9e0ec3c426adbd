"""Greedy generation by transformers' `generate` with its cache; one step is one call."""

import os

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration


def _model(shape: dict):
    if shape["family"] == "gpt2":
        config = GPT2Config(
            vocab_size=shape["vocab"], n_positions=shape["length"] + shape["new"],
            n_embd=shape["width"], n_layer=shape["depth"], n_head=shape["heads"],
            n_inner=shape["mlp"], activation_function="gelu_pytorch_tanh",
        )  # fmt: skip
        return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
    tied = shape["family"] == "t5_v1_0"
    config = T5Config(
        vocab_size=shape["vocab"], d_model=shape["width"], d_kv=64, d_ff=shape["mlp"],
        num_layers=shape["depth"], num_decoder_layers=shape["depth"], num_heads=shape["heads"],
        feed_forward_proj="relu" if tied else "gated-gelu", tie_word_embeddings=tied,
        decoder_start_token_id=0,
    )  # fmt: skip
    if not tied:
        config.dense_act_fn = "gelu_pytorch_tanh"
    return T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")


class Step:
    """The model and its prompts, on the CPU.

    Attributes:
      parameters: of the model.
    """

    flops = None

    def __init__(self, shape: dict, *, compiled: bool, gathered: bool):
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        torch.set_num_threads(len(mine) or os.cpu_count())
        self._model = _model(shape).eval()
        self.parameters = sum(weight.numel() for weight in self._model.parameters())
        random = np.random.default_rng(0)
        ids = random.integers(2, shape["vocab"], (shape["rows"], shape["length"]))
        self._ids, self._new = torch.tensor(ids), shape["new"]
        self._settings = dict(
            max_new_tokens=self._new, min_new_tokens=self._new, do_sample=False, num_beams=1,
            pad_token_id=0, eos_token_id=1, attention_mask=torch.ones_like(self._ids),
        )  # fmt: skip
        if compiled:
            # A cache of a fixed shape, else every token would be compiled anew.
            self._settings["cache_implementation"] = "static"
            self._model.forward = torch.compile(self._model.forward)

    def run(self, steps: int) -> float:
        """Generates so often, returns the last token."""
        with torch.inference_mode():
            for _ in range(steps):
                found = self._model.generate(self._ids, **self._settings)
        prompt = 1 if self._model.config.is_encoder_decoder else self._ids.shape[1]
        assert found.shape[1] - prompt == self._new
        return float(found[0, -1])

    def peak_bytes(self) -> int | None:
        return None

    def device(self) -> str:
        return "cpu"
