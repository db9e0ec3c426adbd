"""T5 weights to and from Hugging Face's names: one table, read in both directions. numpy in, numpy
out.

A Hugging Face matrix is [out, in] and one per layer; ours is [in, out] and stacked [layers, in,
out].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxlm.errors import DataError, MissingInput
from flaxlm.models.t5 import Size
from flaxlm.nn.embed import padded


@dataclass(frozen=True)
class Entry:
    """One parameter of ours. `theirs` holds "{}" for the layer number if the parameter is stacked
    over `layers`.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]  # of one layer, in our order
    layers: int = 0  # 0: not stacked
    transposed: bool = True
    vocab_dim: int | None = None  # the dim that is padded on our side

    def names(self) -> list[str]:
        return [self.theirs.format(layer) for layer in range(self.layers or 1)]


# Copies of other tensors, or unused, that published files carry. The readout of a v1.0 file is the
# embedding table.
_EXTRA = {
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
}


def table(size: Size, *, v1_1: bool) -> list[Entry]:
    """All parameters of `Model` (v1_1) or `ModelV10`, and their tensors."""
    head = [Entry("head/kernel", "lm_head.weight", (size.width, size.vocab), vocab_dim=1)]
    return [
        Entry(
            "embed/table", "shared.weight", (size.vocab, size.width), transposed=False, vocab_dim=0
        ),
        *_tower("encoder", size, size.depth, v1_1),
        *_tower("decoder", size, size.decoder_depth or size.depth, v1_1),
        *(head if v1_1 else []),
    ]


def _tower(name: str, size: Size, depth: int, v1_1: bool) -> Iterator[Entry]:
    inner = size.heads * size.head_dim

    def layer(ours, theirs, *shape):
        return Entry(
            f"{name}/layers/{ours}",
            f"{name}.block.{{}}.layer.{theirs}.weight",
            shape,
            layers=depth,
            transposed=len(shape) == 2,
        )

    attentions = [("attention", "SelfAttention")]
    if name == "decoder":
        attentions.append(("cross_attention", "EncDecAttention"))
    for number, (ours, theirs) in enumerate(attentions):
        norm = ours.replace("attention", "norm") if number else "attention_norm"
        yield layer(f"{norm}/scale", f"{number}.layer_norm", size.width)
        for kernel in ("query", "key", "value"):
            yield layer(f"{ours}/{kernel}", f"{number}.{theirs}.{kernel[0]}", size.width, inner)
        yield layer(f"{ours}/out", f"{number}.{theirs}.o", inner, size.width)
    last = len(attentions)
    yield layer("mlp_norm/scale", f"{last}.layer_norm", size.width)
    for ours, theirs in [("gate", "wi_0"), ("in", "wi_1")] if v1_1 else [("in", "wi")]:
        yield layer(f"mlp/{ours}", f"{last}.DenseReluDense.{theirs}", size.width, size.mlp)
    yield layer("mlp/out", f"{last}.DenseReluDense.wo", size.mlp, size.width)
    yield Entry(
        f"{name}/bias/table",
        f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (size.buckets, size.heads),
        transposed=False,
    )
    yield Entry(
        f"{name}/norm/scale", f"{name}.final_layer_norm.weight", (size.width,), transposed=False
    )


def from_hf(tensors: Mapping[str, np.ndarray], size: Size) -> dict:
    """Parameters of `Model` or `ModelV10`, whichever the tensors are of (v1.1 has gated
    feed-forward layers).

    Args:
      tensors: a T5ForConditionalGeneration's state by Hugging Face name.
      size: of the model; padding rows of the vocabulary become zeros.

    Raises:
      MissingInput: a tensor is missing.
      DataError: a tensor has another shape than `size` says, or does not belong to a T5.
    """
    v1_1 = any(".wi_0." in name for name in tensors)
    entries = table(size, v1_1=v1_1)
    known = {name for entry in entries for name in entry.names()} | _EXTRA
    known |= set() if v1_1 else {"lm_head.weight"}
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise DataError(
            f"{len(unknown)} tensors are not of a T5 of depth {size.depth}, first {unknown[0]!r}"
        )
    return unflatten_dict({e.ours: _stacked(e, tensors) for e in entries}, sep="/")


def _stacked(entry: Entry, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    layers = []
    for name in entry.names():
        if name not in tensors:
            raise MissingInput(f"tensor {name!r} is missing")
        array = np.asarray(tensors[name], np.float32)
        array = array.T if entry.transposed else array
        if array.shape != entry.shape:
            theirs = entry.shape[::-1] if entry.transposed else entry.shape
            raise DataError(
                f"tensor {name!r} has shape {tensors[name].shape}, the model's size says {theirs}"
            )
        layers.append(array)
    if entry.vocab_dim is not None:
        pad = [(0, 0)] * len(entry.shape)
        pad[entry.vocab_dim] = (
            0,
            padded(array.shape[entry.vocab_dim]) - array.shape[entry.vocab_dim],
        )
        layers = [np.pad(array, pad)]
    return np.stack(layers) if entry.layers else np.ascontiguousarray(layers[0])


def to_hf(params: Mapping, size: Size) -> dict[str, np.ndarray]:
    """The tensors of a T5ForConditionalGeneration, by Hugging Face name: the inverse of `from_hf`.

    A v1.0 model has no "lm_head.weight": its config ties it to "shared.weight".
    """
    flat = flatten_dict(params, sep="/")
    tensors = {}
    for entry in table(size, v1_1="head" in params):
        array = np.asarray(flat[entry.ours], np.float32)
        if entry.vocab_dim is not None:
            array = array.take(range(size.vocab), axis=entry.vocab_dim)
        for name, layer in zip(entry.names(), array if entry.layers else [array], strict=True):
            tensors[name] = np.ascontiguousarray(layer.T if entry.transposed else layer)
    return tensors
