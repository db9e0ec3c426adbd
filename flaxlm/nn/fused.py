"""Attention by fused kernels, which XLA cannot split: every device runs one on its rows and heads.

`B` batch, `Q` queries, `S` keys, `H` heads, `K` head dim; arguments as `nn.kernels.attend`.
"""

import jax
import jax.numpy as jnp

from flaxlm.nn import splash as tpu
from flaxlm.nn.masks import Mask
from flaxlm.sharding import attention_axes, axis_size, per_device, platform

# Platform -> its kernel.
KERNELS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}

# cuDNN reads segments as an array [B, 1, Q, S] in 16 bits: at most so many bytes per device.
_MASK_BYTES = 512 * 2**20


def splash(q_BQHK, k_BSHK, v_BSHK, mask, bias=None, dropout=None) -> jax.Array:
    """The TPU kernel. Elsewhere than on TPUs it is interpreted, which is for tests."""
    assert bias is None and dropout is None and mask.extra is None
    interpret = platform() != "tpu"
    return _on_devices(
        lambda *arrays: tpu.attention(*arrays, interpret=interpret), q_BQHK, k_BSHK, v_BSHK, mask
    )


def cudnn(q_BQHK, k_BSHK, v_BSHK, mask, bias=None, dropout=None) -> jax.Array:
    """cuDNN's attention."""
    assert bias is None and dropout is None
    queries, keys = q_BQHK.shape[1], k_BSHK.shape[1]

    def local(q_BQHK, k_BSHK, v_BSHK, mask):
        # The kernel knows causal order and skips half of the work; the rest is said by booleans.
        rest = mask.replace(causal=False)
        return jax.nn.dot_product_attention(
            q_BQHK,
            k_BSHK,
            v_BSHK,
            mask=rest.dense(queries, keys) if _has_array(mask) else None,
            scale=1.0,
            is_causal=mask.causal,
            implementation="cudnn",
        )

    return _on_devices(local, q_BQHK, k_BSHK, v_BSHK, mask)


def obstacle(name: str, q_BQHK, k_BSHK, mask: Mask, bias) -> str | None:
    """Why the kernel of that name cannot do this under the current layout; None: it can."""
    queries, keys = q_BQHK.shape[1], k_BSHK.shape[1]
    if name == "splash":
        found = _obstacle_of_splash(queries, keys, mask, bias)
    else:
        found = _obstacle_of_cudnn(q_BQHK, keys, mask, bias)
    if found is not None:
        return found
    if mask.band is not None and not (mask.causal and queries == keys):
        return "kernels know a band in causal self-attention alone"
    heads = q_BQHK.shape[2]
    if axis_size("length") > 1 and attention_axes(heads)[0] == "length":
        return f"{heads} heads do not divide over mesh.tensor x mesh.sequence"
    return None


def _obstacle_of_splash(queries: int, keys: int, mask: Mask, bias) -> str | None:
    if bias is not None:
        return "the TPU kernel adds nothing to scores"
    if mask.extra is not None:
        return "the TPU kernel reads no array of booleans"
    if queries % tpu.LANES or keys % tpu.LANES:
        return f"the TPU kernel takes lengths in multiples of {tpu.LANES}"
    return None


def _obstacle_of_cudnn(q_BQHK, keys: int, mask: Mask, bias) -> str | None:
    batch, queries, _, head_dim = q_BQHK.shape
    if q_BQHK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN attends in 16 bits, not in {q_BQHK.dtype}"
    if bias is not None:
        # Joined with segments it is [B, H, Q, S], and jax 0.10 has no gradient for that: zeros.
        return "cuDNN's gradient of a bias beside segments cannot be relied on"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN takes head dims up to 128 in multiples of 8, not {head_dim}"
    if queries % 2 or keys % 2:
        return "cuDNN takes even lengths"
    if _has_array(mask) and 2 * batch // axis_size("batch") * queries * keys > _MASK_BYTES:
        return "cuDNN would read too large an array of booleans"
    return None


def _has_array(mask: Mask) -> bool:
    """Whether there is more to it than causal order."""
    return any(part is not None for part in (mask.query_segments, mask.band, mask.extra))


def _on_devices(function, q_BQHK, k_BSHK, v_BSHK, mask: Mask) -> jax.Array:
    """`function(q, k, v, mask)` of every device's rows and heads."""
    length, heads = attention_axes(q_BQHK.shape[2])
    whole = ("batch", length, heads, "head_dim")
    names = ("query_segments", "key_segments", "banded", "extra")
    arrays = {name: getattr(mask, name) for name in names if getattr(mask, name) is not None}

    def local(q_BQHK, k_BSHK, v_BSHK, *parts):
        own = mask.replace(**dict(zip(arrays, parts, strict=True)))
        return function(q_BQHK, k_BSHK, v_BSHK, own)

    def axes(x):
        if not x.ndim:
            return ()
        return ("batch" if len(x) == len(q_BQHK) else None, *(None,) * (x.ndim - 1))

    inputs = [whole, whole, whole, *map(axes, arrays.values())]
    return per_device(local, inputs, whole)(q_BQHK, k_BSHK, v_BSHK, *arrays.values())
