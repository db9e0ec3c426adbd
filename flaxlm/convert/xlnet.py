"""XLNet and transformers' XLNetLMHeadModel or one of its heads for tasks."""

from collections.abc import Iterator, Mapping

from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.bert import gelu_erf, gelu_tanh
from flaxlm.models.xlnet import (
    Body,
    Chooser,
    Classifier,
    Model,
    Size,
    SpanReader,
    Tagger,
    TwoStreamModel,
)

MODEL_TYPES = ("xlnet",)
ALIASES = {"lm_loss.weight": "transformer.word_embedding.weight"}
PREFIX = "transformer."
IGNORED = ()
TOKENIZER = Template(
    single="A sep cls:2",
    pair="A sep B:1 sep:1 cls:2",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
    side="left",
)

_CLASSES = {"XLNetLMHeadModel": Model}

_SUMMARY = ("sequence_summary.summary", ("summary_last_dropout",), 0.1)
_HEADS = (
    Head("XLNetForSequenceClassification", Classifier, Body, "logits_proj", *_SUMMARY),
    Head("XLNetForMultipleChoice", Chooser, Body, "logits_proj", *_SUMMARY),
    Head("XLNetForTokenClassification", Tagger, Body, "classifier"),
    Head("XLNetForQuestionAnsweringSimple", SpanReader, Body, "qa_outputs"),
)

_DEFAULTS = {  # of transformers' XLNetConfig: a file need not repeat them
    "vocab_size": 32000,
    "d_model": 1024,
    "n_layer": 24,
    "n_head": 16,
    "d_inner": 4096,
    "d_head": None,
    "dropout": 0.1,
    "layer_norm_eps": 1e-12,
    "ff_activation": "gelu",
    "attn_type": "bi",
    "bi_data": False,
    "clamp_len": -1,
    "same_length": False,
    "untie_r": True,
    "tie_word_embeddings": True,
}
_ACCEPTED = {
    "attn_type": ("bi",),
    "bi_data": (False,),
    "same_length": (False,),
    "untie_r": (True,),
    "tie_word_embeddings": (True,),
}


# The published code has the tanh form. The published config.json says "gelu", and transformers then
# computes the exact one: up to 2e-4 in the outputs of small random models.
_ACTIVATIONS = {"gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh, "gelu": gelu_erf}


def model_of(config: Mapping) -> Model:
    """The model of a config.json, without memory: mem_len and reuse_len are about what transformers
    hands back for a next call.

    Raises:
      ConfigError: it asks for something that the published model does not have.
    """
    get = option(config, _DEFAULTS)
    refuse(get, {**_ACCEPTED, "ff_activation": tuple(_ACTIVATIONS)})
    if get("clamp_len") > 0:
        raise ConfigError(
            f"config.json: clamp_len={get('clamp_len')} is not supported; -1 is: distances are "
            "never clamped"
        )
    head = heads.named(config, _HEADS)
    model = (head.encoder if head else Model)(
        Size(
            depth=get("n_layer"),
            width=get("d_model"),
            mlp=get("d_inner"),
            heads=get("n_head"),
            head_dim=get("d_head") or get("d_model") // get("n_head"),
            vocab=get("vocab_size"),
            dropout=get("dropout"),
            eps=get("layer_norm_eps"),
        ),
        activation=_ACTIVATIONS[get("ff_activation")],
    )
    return heads.on(head, model, config) if head else model


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    _published(heads.below(model))
    # Both of the family's own models have the same parameters.
    one = type(model) is TwoStreamModel
    model = Model(model.size, activation=model.activation) if one else model
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    size = model.size
    names = {function: name for name, function in reversed(_ACTIVATIONS.items())}
    return {
        **about,
        "model_type": "xlnet",
        "vocab_size": size.vocab,
        "d_model": size.width,
        "n_layer": size.depth,
        "n_head": size.heads,
        "d_head": size.head_dim,
        "d_inner": size.mlp,
        "dropout": size.dropout,
        "layer_norm_eps": size.eps,
        "ff_activation": names[model.activation],
        "attn_type": "bi",
        "bi_data": False,
        "clamp_len": -1,
        "same_length": False,
        "mem_len": size.memory or None,
        "reuse_len": size.reuse or None,
        "tie_word_embeddings": True,
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    whole, model = model, heads.below(model)
    size = _published(model).size
    words = "transformer.word_embedding.weight"
    entries = [
        Entry("embed/table", words, (size.vocab, size.width), vocab_dim=0),
        Entry("query/table", "transformer.mask_emb", (1, size.width), folded=(1, 1, size.width)),
        *_layers(size),
    ]
    if not isinstance(model, Body):
        entries.append(Entry("bias", "lm_loss.bias", (size.vocab,), vocab_dim=0))
    return heads.with_head(whole, entries, _HEADS)


def _layers(size: Size) -> Iterator[Entry]:
    depth, theirs = size.depth, "transformer.layer.{}."
    kernel, vector = (size.width, size.heads, size.head_dim), (size.heads, size.head_dim)

    def attention(ours, name, shape, **more):
        return Entry(f"layers/attention/{ours}", f"{theirs}rel_attn.{name}", shape, depth, **more)

    for ours, name in (
        ("query", "q"), ("key", "k"), ("value", "v"), ("relative", "r")
    ):  # fmt: skip
        yield attention(f"{ours}/kernel", name, (size.width, size.inner), folded=kernel)
    # Theirs is [D, H, K] here too, though it goes from heads to width.
    yield attention("out/kernel", "o", (size.inner, size.width), transposed=True, folded=kernel)
    yield attention("relative/content_bias", "r_w_bias", vector)
    yield attention("relative/position_bias", "r_r_bias", vector)
    yield attention("type_bias", "r_s_bias", vector)
    yield attention("types", "seg_embed", (2, size.inner), folded=(2, *vector))
    widths = {"in": (size.width, size.mlp), "out": (size.mlp, size.width)}
    for (ours, shape), name in zip(widths.items(), ("layer_1", "layer_2"), strict=True):
        yield from linear("layers/mlp", f"{theirs}ff.{name}", shape, kernel=ours, layers=depth)
    for ours, name in (("attention_norm", "rel_attn"), ("mlp_norm", "ff")):
        yield from layer_norm(
            f"layers/{ours}", f"{theirs}{name}.layer_norm", size.width, layers=depth
        )


def _published(model: Model) -> Model:
    if type(model) not in (Model, TwoStreamModel, Body):
        raise ConfigError(f"transformers has no {type(model).__name__} of this family")
    if model.activation not in _ACTIVATIONS.values():
        raise ConfigError("model.activation: transformers' XLNet has gelu_tanh or gelu_erf")
    if model.size.inner != model.size.width:
        raise ConfigError(
            f"model.size: heads={model.size.heads} x head_dim={model.size.head_dim} is not "
            f"width={model.size.width}; transformers asks for it"
        )
    return model
