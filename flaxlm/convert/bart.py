"""BART and transformers' BartForConditionalGeneration, the bare BartModel or its heads for tasks.

The first two hold the same parameters: the readout is the embedding table. The former has a buffer
"final_logits_bias" besides, which is zero in all published files; other values are refused.
"""

from collections.abc import Iterator, Mapping

from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.bart import OFFSET, Classifier, Model, Size, SpanReader

MODEL_TYPES = ("bart",)
ALIASES = {
    "lm_head.weight": "model.shared.weight",
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
}
PREFIX = "model."
IGNORED = ()
ZEROS = (r"final_logits_bias",)
TOKENIZER = Template(single="bos A eos", pair="bos A eos eos B eos", start="eos")

_CLASSES = {"BartForConditionalGeneration": Model}
_HEADS = (
    Head(
        "BartForSequenceClassification", Classifier, Model,
        "classification_head.out_proj", "classification_head.dense", ("classifier_dropout",),
    ),
    Head("BartForQuestionAnswering", SpanReader, Model, "qa_outputs"),
)  # fmt: skip

_DEFAULTS = {  # of transformers' BartConfig: a file need not repeat them
    "vocab_size": 50265,
    "d_model": 1024,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    # Of the first files, whose published values transformers' class has built in.
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": OFFSET,
}
_ACCEPTED = {  # "gelu" is the erf one
    "activation_function": ("gelu",),
    "encoder_layerdrop": (0.0,),
    "decoder_layerdrop": (0.0,),
    "scale_embedding": (False,),
    "tie_word_embeddings": (True,),
    "is_encoder_decoder": (True,),
    "normalize_before": (False,),
    "normalize_embedding": (True,),
    "add_final_layer_norm": (False,),
    "add_bias_logits": (False,),
    "static_position_embeddings": (False,),
    "extra_pos_embeddings": (OFFSET,),
}


def model_of(config: Mapping) -> Model:
    """The model of a config.json.

    Raises:
      ConfigError: it asks for something that the published model does not have.
    """
    get = option(config, _DEFAULTS)
    refuse(get, _ACCEPTED)
    for name in ("ffn_dim", "attention_heads"):
        one, other = get(f"encoder_{name}"), get(f"decoder_{name}")
        if one != other:
            raise ConfigError(
                f"config.json: encoder_{name}={one}, decoder_{name}={other}; a model here has one "
                "number for both"
            )
    width, count = get("d_model"), get("encoder_attention_heads")
    if width % count:
        raise ConfigError(f"config.json: d_model={width} is no multiple of {count} attention heads")
    depth, decoder_depth = get("encoder_layers"), get("decoder_layers")
    model = Model(
        Size(
            depth=depth,
            width=width,
            mlp=get("encoder_ffn_dim"),
            heads=count,
            vocab=get("vocab_size"),
            decoder_depth=0 if decoder_depth == depth else decoder_depth,
            positions=get("max_position_embeddings"),
            dropout=get("dropout"),
            attention_dropout=get("attention_dropout"),
            mlp_dropout=get("activation_dropout"),
        )
    )
    head = heads.named(config, _HEADS)
    return heads.on(head, model, config) if head else model


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    size = model.size
    if size.eps != 1e-5:
        raise ConfigError(f"model.size.eps={size.eps}: transformers' BART has 1e-05 built in")
    return {
        **about,
        "model_type": "bart",
        "vocab_size": size.vocab,
        "d_model": size.width,
        "max_position_embeddings": size.positions,
        "encoder_layers": size.depth,
        "decoder_layers": size.decoder_depth or size.depth,
        "encoder_ffn_dim": size.mlp,
        "decoder_ffn_dim": size.mlp,
        "encoder_attention_heads": size.heads,
        "decoder_attention_heads": size.heads,
        "dropout": size.dropout,
        "attention_dropout": size.attention_dropout,
        "activation_dropout": size.mlp_dropout,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors."""
    size = model.size
    entries = [
        Entry("embed/table", "model.shared.weight", (size.vocab, size.width), vocab_dim=0),
        *_tower("encoder", size, size.depth),
        *_tower("decoder", size, size.decoder_depth or size.depth),
    ]
    return heads.with_head(model, entries, _HEADS)


def _tower(name: str, size: Size, depth: int) -> Iterator[Entry]:
    width, start = size.width, f"model.{name}."
    yield Entry(
        f"{name}/positions/table",
        start + "embed_positions.weight",
        (size.positions + OFFSET, width),
    )
    yield from layer_norm(f"{name}/embedding_norm", start + "layernorm_embedding", width)

    def layer(ours, theirs):
        return f"{name}/layers/{ours}", f"{start}layers.{{}}.{theirs}"

    attentions = [("attention", "self_attn", "attention_norm")]
    if name == "decoder":
        attentions.append(("cross_attention", "encoder_attn", "cross_norm"))
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    for ours, theirs, norm in attentions:
        for kernel, projection in projections.items():
            names = layer(ours, f"{theirs}.{projection}")
            yield from linear(*names, (width, width), kernel=kernel, layers=depth)
        yield from layer_norm(*layer(norm, f"{theirs}_layer_norm"), width, layers=depth)
    for kernel, theirs, shape in (
        ("in", "fc1", (width, size.mlp)),
        ("out", "fc2", (size.mlp, width)),
    ):
        yield from linear(*layer("mlp", theirs), shape, kernel=kernel, layers=depth)
    yield from layer_norm(*layer("mlp_norm", "final_layer_norm"), width, layers=depth)
