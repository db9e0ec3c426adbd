"""The same training step by transformers' classes on torch.

Attention is torch's scaled_dot_product_attention (the flash kernels where they apply), AdamW and
the norm of the gradients are the fused ones. bfloat16 is torch.autocast over float32 weights: as in
flaxlm, products run in bfloat16 and norms, softmax of the loss and the optimizer in float32.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from . import shapes

# torch's own kernel; transformers spells "gelu_new" out in elementwise operations.
_GELU = "gelu_pytorch_tanh"


def _gpt2(shape, arrays):
    config = GPT2Config(
        vocab_size=shape["vocab"], n_positions=shape["length"], n_embd=shape["width"],
        n_layer=shape["depth"], n_head=shape["heads"], n_inner=shape["mlp"],
        resid_pdrop=shape["dropout"], embd_pdrop=shape["dropout"], attn_pdrop=shape["dropout"],
        activation_function=_GELU, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")

    def loss(tokens, targets):
        logits = model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return model, loss, (arrays["tokens"], arrays["targets"])


def _bert(shape, arrays, *, gathered):
    config = BertConfig(
        vocab_size=shape["vocab"], max_position_embeddings=shape["length"],
        hidden_size=shape["width"], num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"], intermediate_size=shape["mlp"], hidden_act=_GELU,
        hidden_dropout_prob=shape["dropout"], attention_probs_dropout_prob=shape["dropout"],
    )  # fmt: skip
    model = BertForMaskedLM._from_config(config, attn_implementation="sdpa")
    labels = np.full_like(arrays["tokens"], -100)
    np.put_along_axis(labels, arrays["slots"], arrays["slot_targets"], axis=1)

    def loss_of_all(tokens, labels):
        return model(input_ids=tokens, labels=labels).loss

    def loss_of_slots(tokens, slots, targets):
        hidden = model.bert(input_ids=tokens).last_hidden_state
        places = slots[..., None].expand(-1, -1, hidden.shape[-1])
        logits = model.cls(hidden.gather(1, places))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if gathered:
        return model, loss_of_slots, (arrays["tokens"], arrays["slots"], arrays["slot_targets"])
    return model, loss_of_all, (arrays["tokens"], labels)


def _t5(shape, arrays):
    tied = shape["family"] == "t5_v1_0"
    config = T5Config(
        vocab_size=shape["vocab"], d_model=shape["width"],
        d_kv=shape["width"] // shape["heads"], d_ff=shape["mlp"], num_layers=shape["depth"],
        num_decoder_layers=shape["depth"], num_heads=shape["heads"], dropout_rate=shape["dropout"],
        feed_forward_proj="relu" if tied else "gated-gelu", tie_word_embeddings=tied,
        use_cache=False,
    )  # fmt: skip
    if not tied:
        config.dense_act_fn = _GELU
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    if not tied:  # the class ties the readout whatever its configuration says
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    targets = arrays["targets"]
    shifted = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], axis=1)

    def loss(tokens, shifted, targets):
        return model(
            input_ids=tokens, decoder_input_ids=shifted, labels=targets, use_cache=False
        ).loss

    return model, loss, (arrays["tokens"], shifted, targets)


class Step:
    """The model, its optimizer and its batch; on a GPU if there is one.

    Attributes:
      parameters: of the model.
    """

    flops = None  # those of the model, which the other side counts

    def __init__(self, shape: dict, *, compiled: bool, gathered: bool):
        # As XLA does, all the cores that this process may use.
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        torch.set_num_threads(len(mine) or os.cpu_count())
        self._cuda = torch.cuda.is_available()
        where = "cuda" if self._cuda else "cpu"
        family, arrays = shape["family"], shapes.batch(shape)
        if family == "bert":
            model, loss, batch = _bert(shape, arrays, gathered=gathered)
        else:
            model, loss, batch = (_gpt2 if family == "gpt2" else _t5)(shape, arrays)
        model.train().to(where)
        self._batch = [torch.tensor(x, dtype=torch.long, device=where) for x in batch]
        self._loss = torch.compile(loss) if compiled else loss
        self._autocast = torch.autocast(
            where, dtype=torch.bfloat16, enabled=shape["dtype"] == "bfloat16"
        )
        self._weights = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._weights, lr=1e-4, weight_decay=0.01, fused=True)
        self.parameters = sum(weight.numel() for weight in self._weights)

    def run(self, steps: int) -> float:
        """Makes the steps, returns the last loss."""
        for _ in range(steps):
            self._optimizer.zero_grad(set_to_none=True)
            with self._autocast:
                loss = self._loss(*self._batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._weights, 1.0, foreach=True)
            self._optimizer.step()
        if self._cuda:
            torch.cuda.synchronize()
        return loss.item()

    def peak_bytes(self) -> int | None:
        """Most memory of the device that was in use, where the device counts it."""
        return torch.cuda.max_memory_allocated() if self._cuda else None

    def device(self) -> str:
        return torch.cuda.get_device_name() if self._cuda else "cpu"
