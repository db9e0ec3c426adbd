"""BERT and transformers' BertForPreTraining, BertForMaskedLM, the bare BertModel or one of its
heads for tasks; RoFormer, which is BERT with rotary positions, and its RoFormerForMaskedLM.
"""

from collections.abc import Callable, Mapping

from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.bert import (
    Body,
    Chooser,
    Classifier,
    Encoder,
    MaskedLanguageModel,
    Model,
    Size,
    SpanReader,
    Tagger,
    gelu_erf,
    gelu_tanh,
)
from flaxlm.nn.positions import Rotary

MODEL_TYPES = ("bert", "roformer")
PREFIX = "bert."
IGNORED = (
    r"(bert\.)?embeddings\.position_ids",
    r"roformer\.encoder\.embed_positions\.weight",  # the sines of the rotation
    # Files of the masked language model often carry these from their pretraining.
    r"bert\.pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
)
TOKENIZER = Template(
    single="cls A sep",
    pair="cls A sep B:1 sep:1",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
)

_NORMS = (  # of files made before transformers 3: gamma and beta
    "bert.embeddings.LayerNorm",
    "cls.predictions.transform.LayerNorm",
    *(
        f"bert.encoder.layer.{layer}.{part}.LayerNorm"
        for layer in range(64)
        for part in ("attention.output", "output")
    ),
)
ALIASES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    **{f"{norm}.gamma": f"{norm}.weight" for norm in _NORMS},
    **{f"{norm}.beta": f"{norm}.bias" for norm in _NORMS},
}

CLASSES = {
    "BertForPreTraining": Model,
    "BertForMaskedLM": MaskedLanguageModel,
    "BertModel": Encoder,
    "RoFormerForMaskedLM": MaskedLanguageModel,
}

_RATES = ("classifier_dropout", "hidden_dropout_prob")
HEADS = (
    Head("BertForSequenceClassification", Classifier, Encoder, "classifier", "", _RATES, 0.1),
    Head("BertForMultipleChoice", Chooser, Encoder, "classifier", "", _RATES, 0.1),
    Head("BertForTokenClassification", Tagger, Body, "classifier", "", _RATES, 0.1),
    Head("BertForQuestionAnswering", SpanReader, Body, "qa_outputs"),
)

# transformers' "gelu" is by erf, whatever code the weights were trained with.
ACTIVATIONS = {
    "gelu": gelu_erf,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}

_DEFAULTS = {  # of transformers' BertConfig: a file need not repeat them
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_ROFORMER = {  # of RoFormerConfig, where it differs
    "vocab_size": 50000,
    "embedding_size": None,
    "max_position_embeddings": 1536,
    "rotary_value": False,
}
ACCEPTED = {
    "hidden_act": tuple(ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def model_of(config: Mapping) -> MaskedLanguageModel:
    """The model of a config.json, of the class that its "architectures" says.

    Raises:
      ConfigError: it asks for something that no model here has.
    """
    if config["model_type"] == "roformer":
        get = option(config, _DEFAULTS | _ROFORMER)
        refuse(get, ACCEPTED | {"rotary_value": (False,)})
        embed_width = get("embedding_size") or get("hidden_size")
        embed_width = 0 if embed_width == get("hidden_size") else embed_width
        more = {"positions": Rotary(interleaved=True)}
    else:
        get, embed_width, more = option(config, _DEFAULTS), 0, {}
        refuse(get, ACCEPTED)
    size = Size(
        length=get("max_position_embeddings"),
        types=get("type_vocab_size"),
        embed_width=embed_width,
        **numbers(get),
    )
    head = heads.named(config, HEADS)
    made = head.encoder if head else class_of(config, CLASSES)
    model = made(size, activation=ACTIVATIONS[get("hidden_act")], **more)
    return heads.on(head, model, config) if head else model


def class_of(config: Mapping, classes: Mapping[str, type]) -> type:
    """The class for the first of a config.json's "architectures".

    Raises:
      ConfigError: there is no class for it.
    """
    named = config["architectures"][0]
    if named not in classes:
        raise ConfigError(
            f"config.json: architectures={named} is not supported; {', '.join(classes)} are"
        )
    return classes[named]


def numbers(get: Callable) -> dict:
    """Fields of a `Size` from an option getter: those that all encoders call alike."""
    return dict(
        depth=get("num_hidden_layers"),
        width=get("hidden_size"),
        mlp=get("intermediate_size"),
        heads=get("num_attention_heads"),
        vocab=get("vocab_size"),
        dropout=get("hidden_dropout_prob"),
        attention_dropout=get("attention_probs_dropout_prob"),
        eps=get("layer_norm_eps"),
    )


def options(size: Size) -> dict:
    """The inverse of `numbers`, and the types."""
    return {
        "num_hidden_layers": size.depth,
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "num_attention_heads": size.heads,
        "vocab_size": size.vocab,
        "type_vocab_size": size.types,
        "hidden_dropout_prob": size.dropout,
        "attention_probs_dropout_prob": size.attention_dropout,
        "layer_norm_eps": size.eps,
        "tie_word_embeddings": True,
    }


def name_of(activation: Callable) -> str:
    """transformers' name of an activation.

    Raises:
      ConfigError: it has none.
    """
    for name, function in ACTIVATIONS.items():
        if function is activation:
            return name
    raise ConfigError("model.activation: only gelu_tanh and gelu_erf have a name in transformers")


def config_of(model: MaskedLanguageModel) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    size, kind = model.size, _kind(heads.below(model))
    classes = {name: made for name, made in CLASSES.items() if name.lower().startswith(kind)}
    encoder, about = heads.taken_apart(model, classes, HEADS if kind == "bert" else ())
    config = {
        "model_type": kind,
        "hidden_act": name_of(encoder.activation),
        "max_position_embeddings": size.length,
        **options(size),
        **about,
    }
    if kind == "roformer":
        config |= {"embedding_size": size.embedding, "rotary_value": False}
    return config


def table(model: MaskedLanguageModel) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    whole, model = model, heads.below(model)
    size, kind = model.size, _kind(model)
    start, width = f"{kind}.", size.width
    entries = [*embeddings(size, start), *layers(size, start)]
    if kind == "bert":
        rows = "embeddings.position_embeddings.weight"
        entries += [Entry("embed/positions/table", start + rows, (size.length, width))]
    if size.embed_width:
        entries += linear("widen", start + "embeddings_project", (size.embedding, width))
    if not isinstance(model, Body):
        entries += head(size, "cls.predictions.transform", bias="cls.predictions.bias")
    if isinstance(model, Encoder | Model):
        entries += linear("pooler", start + "pooler.dense", (width, width))
    if isinstance(model, Model):
        entries += linear("pair", "cls.seq_relationship", (width, 2))
    return heads.with_head(whole, entries, HEADS if kind == "bert" else ())


def embeddings(size: Size, start: str) -> list[Entry]:
    """The tables of words and types, and their norm; `start` is what all names begin with."""
    words = start + "embeddings.word_embeddings.weight"
    shape = (size.vocab, size.embedding)
    entries = [
        Entry("embed/tokens/table", words, shape, vocab_dim=0),
        *layer_norm("embed/norm", start + "embeddings.LayerNorm", size.embedding),
    ]
    if size.types:
        types = start + "embeddings.token_type_embeddings.weight"
        entries.append(Entry("embed/types/table", types, (size.types, size.embedding)))
    return entries


def layers(size: Size, start: str, ours: str = "layers") -> list[Entry]:
    """The layers, "<start>encoder.layer.N" there and `ours` here."""
    width, depth = size.width, size.depth

    def product(here, there, shape):
        part, _, kernel = here.partition("/")
        there = f"{start}encoder.layer.{{}}.{there}"
        return linear(f"{ours}/{part}", there, shape, kernel=kernel, layers=depth)

    def norm(here, there):
        there = f"{start}encoder.layer.{{}}.{there}.LayerNorm"
        return layer_norm(f"{ours}/{here}", there, width, layers=depth)

    return [
        *product("attention/query", "attention.self.query", (width, width)),
        *product("attention/key", "attention.self.key", (width, width)),
        *product("attention/value", "attention.self.value", (width, width)),
        *product("attention/out", "attention.output.dense", (width, width)),
        *norm("attention_norm", "attention.output"),
        *product("mlp/in", "intermediate.dense", (width, size.mlp)),
        *product("mlp/out", "output.dense", (size.mlp, width)),
        *norm("mlp_norm", "output"),
    ]


def head(size: Size, transform: str, *, bias: str, norm: str = "LayerNorm") -> list[Entry]:
    """The masked token head: "<transform>.dense", "<transform>.<norm>" and a bias per word."""
    return [
        *linear("head/dense", transform + ".dense", (size.width, size.embedding)),
        *layer_norm("head/norm", f"{transform}.{norm}", size.embedding),
        Entry("head/bias", bias, (size.vocab,), vocab_dim=0),
    ]


def _kind(model: MaskedLanguageModel) -> str:
    """The "model_type" of a model."""
    size, positions = model.size, model.positions
    if positions is not None:
        repeated = Rotary(interleaved=True)
        if type(positions) is not Rotary or (
            (positions.interleaved, positions.share, positions.base)
            != (repeated.interleaved, repeated.share, repeated.base)
        ):
            raise ConfigError(
                f"model.positions={type(positions).__name__}: transformers has this model with a "
                "learned table or with Rotary(interleaved=True) alone"
            )
        return "roformer"
    if size.embed_width:
        raise ConfigError(
            f"model.size.embed_width={size.embed_width}: transformers' BERT has none; make it 0"
        )
    if not size.types:
        raise ConfigError("model.size.types=0: transformers' BERT has at least 1")
    return "bert"
