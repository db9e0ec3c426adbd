"""Make the goldens of tests/test_positions.py from transformers.

    python tests/parity/make_positions.py     (needs torch and transformers: pip install
    'flaxlm[parity]')

Made with transformers 5.23 and torch 2.13, eager attention, float32.
"""

from pathlib import Path

import numpy as np
import torch
from positions_cases import HEADS, MODELS, SHARES, SINUSOIDS, SLOPES, inputs, tensor, values
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
)
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.gpt_neox import modeling_gpt_neox as neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.roformer import modeling_roformer as roformer

FILE = Path(__file__).parent / "positions.npz"


def turned(family: str) -> np.ndarray:
    """[B, L, H, K] turned by a family's own functions, at positions 0, 1, ..."""
    _, length, heads, head_dim = HEADS
    x = torch.from_numpy(values(f"turned {family}", HEADS))
    positions = torch.arange(length)[None]
    turning = int(head_dim * SHARES[family])
    if family in ("llama", "neox"):  # heads come before positions
        x = x.transpose(1, 2)
        numbers = dict(hidden_size=heads * head_dim, num_attention_heads=heads)
        if family == "llama":
            config, module, kind = LlamaConfig(**numbers), llama, llama.LlamaRotaryEmbedding
        else:
            config, module, kind = GPTNeoXConfig(**numbers), neox, neox.GPTNeoXRotaryEmbedding
        cos, sin = kind(config)(x, positions)
        assert cos.shape[-1] == turning
        return module.apply_rotary_pos_emb(x, x, cos, sin)[0].transpose(1, 2).numpy()
    if family == "gptj":  # its attention turns the first channels of a head
        sin, cos = gptj.create_sinusoidal_positions(length, turning)[None].chunk(2, dim=-1)
        part = gptj.apply_rotary_pos_emb(x[..., :turning], sin, cos)
        return torch.cat([part, x[..., turning:]], dim=-1).numpy()
    table = roformer.RoFormerSinusoidalPositionalEmbedding(length, head_dim).create_weight()
    turn = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings
    return turn(table, x.transpose(1, 2), x.transpose(1, 2))[0].transpose(1, 2).numpy()


def sinusoids(family: str) -> np.ndarray:
    """[positions, width]; M2M100 took fairseq's code over."""
    shape = SINUSOIDS[family]
    if family == "fairseq":
        return M2M100SinusoidalPositionalEmbedding.get_embedding(*shape).numpy()
    return create_sinusoidal_embeddings(*shape, out=torch.empty(shape)).numpy()


def alibi(heads: int) -> np.ndarray:
    """[H, keys] of BLOOM."""
    return build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)[:, 0].numpy()


def build(family: str):
    """A whole model with the weights of positions_cases.py, in eval mode."""
    size = MODELS[family]
    if family == "neox":
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=size["vocab"],
                hidden_size=size["width"],
                num_hidden_layers=size["depth"],
                num_attention_heads=size["heads"],
                intermediate_size=size["mlp"],
                hidden_act="gelu_new",
                use_parallel_residual=False,
                attn_implementation="eager",
            )
        )
    else:
        model = BloomForCausalLM(
            BloomConfig(
                vocab_size=size["vocab"],
                hidden_size=size["width"],
                n_layer=size["depth"],
                n_head=size["heads"],
                attn_implementation="eager",
            )
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(tensor(name, tuple(weight.shape))))
    return model.eval()


def hidden(family: str) -> np.ndarray:
    """[B, L, D] last hidden states of a whole model."""
    batch = inputs(MODELS[family]["vocab"])
    with torch.no_grad():
        out = build(family)(
            input_ids=torch.from_numpy(batch["tokens"]).long(),
            attention_mask=torch.from_numpy(batch["segments"]).long(),
            output_hidden_states=True,
        )
    return out.hidden_states[-1].numpy()


def golden() -> dict[str, np.ndarray]:
    """Everything that is stored."""
    found = {f"turned/{family}": turned(family) for family in SHARES}
    found |= {f"sinusoids/{family}": sinusoids(family) for family in SINUSOIDS}
    found |= {f"alibi/{heads}": alibi(heads) for heads in SLOPES}
    for family in MODELS:
        found[f"hidden/{family}"] = hidden(family)
        for name, weight in build(family).named_parameters():
            found[f"shape/{family}/{name}"] = np.array(weight.shape, np.int32)
    return found


if __name__ == "__main__":
    np.savez_compressed(FILE, **golden())
    print(FILE.name, FILE.stat().st_size)
