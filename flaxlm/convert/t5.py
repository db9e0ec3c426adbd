"""T5 (v1.0 and v1.1, LM-adapted T5, T0, FLAN-T5) and transformers' T5ForConditionalGeneration or
T5ForSequenceClassification, which calls "transformer.shared" what is "shared" in the former.
"""

from collections.abc import Iterator, Mapping

from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, option
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.t5 import Body, Classifier, Model, ModelV10, Size

MODEL_TYPES = ("t5",)

# Copies of the embedding table; of "lm_head.weight" only where the model has no readout of its own.
ALIASES = {
    "lm_head.weight": "shared.weight",
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "transformer.encoder.embed_tokens.weight": "transformer.shared.weight",
    "transformer.decoder.embed_tokens.weight": "transformer.shared.weight",
}
PREFIX = ""
TOKENIZER = Template(single="A eos", pair="A eos B eos", start="pad", sentinels=100)
# The first published files have a table that no version of the model reads.
IGNORED = (
    r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention"
    r"\.relative_attention_bias\.weight",
)

_HEADS = tuple(
    Head(
        "T5ForSequenceClassification", Classifier, kind,
        "classification_head.out_proj", "classification_head.dense", ("classifier_dropout",),
    )
    for kind in (Body, ModelV10)
)  # fmt: skip

_DEFAULTS = {  # of transformers' T5Config: a file need not repeat them
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
}


def model_of(config: Mapping) -> Model | ModelV10 | Classifier:
    """The model of a config.json: v1.1 if its feed-forward layers are gated.

    Raises:
      ConfigError: the layers are of neither version, or a v1.1 shares its readout.
    """
    get = option(config, _DEFAULTS)
    kind = get("feed_forward_proj")
    if kind not in ("relu", "gated-gelu"):
        raise ConfigError(f"config.json: feed_forward_proj={kind!r}; known are relu, gated-gelu")
    gated = kind == "gated-gelu"
    # "scale_decoder_outputs" is what transformers 5 makes of "tie_word_embeddings", which it then
    # always writes as true.
    tied = get("scale_decoder_outputs")
    tied = get("tie_word_embeddings") if tied is None else tied
    if gated == bool(tied):
        raise ConfigError(
            f"config.json: feed_forward_proj={kind!r} with a readout that is "
            f"{'' if tied else 'not '}the embedding table is neither T5 v1.0 nor v1.1"
        )
    depth, decoder_depth = get("num_layers"), get("num_decoder_layers")
    size = Size(
        depth=depth,
        width=get("d_model"),
        mlp=get("d_ff"),
        heads=get("num_heads"),
        head_dim=get("d_kv"),
        vocab=get("vocab_size"),
        decoder_depth=0 if decoder_depth in (None, depth) else decoder_depth,
        buckets=get("relative_attention_num_buckets"),
        max_distance=get("relative_attention_max_distance"),
        dropout=get("dropout_rate"),
        eps=get("layer_norm_epsilon"),
    )
    if heads.named(config, _HEADS):
        encoder = (Body if gated else ModelV10)(size)
        return heads.on(next(h for h in _HEADS if h.encoder is type(encoder)), encoder, config)
    return (Model if gated else ModelV10)(size)


def config_of(model: Model | ModelV10 | Classifier) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    v1_1 = _is_v1_1(heads.below(model))
    classes = {"T5ForConditionalGeneration": Model if v1_1 else ModelV10}
    model, about = heads.taken_apart(model, classes, _HEADS)
    size = model.size
    return {
        **about,
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": size.vocab,
        "d_model": size.width,
        "d_kv": size.head_dim,
        "d_ff": size.mlp,
        "num_layers": size.depth,
        "num_decoder_layers": size.decoder_depth or size.depth,
        "num_heads": size.heads,
        "relative_attention_num_buckets": size.buckets,
        "relative_attention_max_distance": size.max_distance,
        "dropout_rate": size.dropout,
        "layer_norm_epsilon": size.eps,
        "feed_forward_proj": "gated-gelu" if v1_1 else "relu",
        "tie_word_embeddings": not v1_1,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def table(model: Model | ModelV10 | Classifier) -> list[Entry]:
    """All parameters of a model, and their tensors."""
    whole, model = model, heads.below(model)
    v1_1, size = _is_v1_1(model), model.size
    start = "" if model is whole else "transformer."
    head = Entry(
        "head/kernel", "lm_head.weight", (size.width, size.vocab), transposed=True, vocab_dim=1
    )
    entries = [
        Entry("embed/table", start + "shared.weight", (size.vocab, size.width), vocab_dim=0),
        *_tower("encoder", start, size, size.depth, v1_1),
        *_tower("decoder", start, size, size.decoder_depth or size.depth, v1_1),
        *([head] if type(model) is Model else []),
    ]
    return heads.with_head(whole, entries, _HEADS)


def _is_v1_1(model) -> bool:
    if type(model) not in (Model, ModelV10, Body):
        raise ConfigError(
            f"transformers has no {type(model).__name__} of this family; Model and ModelV10 convert"
        )
    return type(model) is not ModelV10


def _tower(name: str, start: str, size: Size, depth: int, v1_1: bool) -> Iterator[Entry]:
    inner, stack = size.heads * size.head_dim, start + name

    def layer(ours, theirs, *shape):
        return Entry(
            f"{name}/layers/{ours}",
            f"{stack}.block.{{}}.layer.{theirs}.weight",
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
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (size.buckets, size.heads),
    )
    yield Entry(f"{name}/norm/scale", f"{stack}.final_layer_norm.weight", (size.width,))
