"""ALBERT and transformers' AlbertForPreTraining, AlbertForMaskedLM, the bare AlbertModel or one of
its heads for tasks.

transformers has ALBERT with all parameters shared (or in groups, which no published model has),
and always a projection after the embeddings.
"""

from collections.abc import Mapping

from flaxlm.convert import bert as encoders
from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.errors import ConfigError
from flaxlm.models import albert

MODEL_TYPES = ("albert",)
PREFIX = "albert."
IGNORED = (
    r"(albert\.)?embeddings\.position_ids",
    # Files of the masked language model often carry these from their pretraining.
    r"albert\.pooler\.(weight|bias)",
    r"sop_classifier\.classifier\.(weight|bias)",
)
ALIASES = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
TOKENIZER = encoders.TOKENIZER

_CLASSES = {
    "AlbertForPreTraining": albert.Model,
    "AlbertForMaskedLM": albert.MaskedLanguageModel,
    "AlbertModel": albert.Encoder,
}

_RATE = ("classifier_dropout_prob",)
_HEADS = (
    Head(
        "AlbertForSequenceClassification", albert.Classifier, albert.Encoder,
        "classifier", "", _RATE, 0.1,
    ),
    Head("AlbertForMultipleChoice", albert.Chooser, albert.Encoder, "classifier", "", _RATE, 0.1),
    Head("AlbertForTokenClassification", albert.Tagger, albert.Body, "classifier", "", _RATE, 0.1),
    Head("AlbertForQuestionAnswering", albert.SpanReader, albert.Body, "qa_outputs"),
)  # fmt: skip

_DEFAULTS = {  # of transformers' AlbertConfig: a file need not repeat them
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}
_ACCEPTED = {
    "num_hidden_groups": (1,),
    "inner_group_num": (1,),
    "hidden_act": tuple(encoders.ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
}


def model_of(config: Mapping) -> albert.MaskedLanguageModel:
    """The model of a config.json, of the class that its "architectures" says.

    Raises:
      ConfigError: it asks for something that no model here has, such as groups of layers.
    """
    get = option(config, _DEFAULTS)
    refuse(get, _ACCEPTED)
    size = albert.Size(
        length=get("max_position_embeddings"),
        types=get("type_vocab_size"),
        embed_width=get("embedding_size"),
        **encoders.numbers(get),
    )
    head = heads.named(config, _HEADS)
    made = head.encoder if head else encoders.class_of(config, _CLASSES)
    model = made(size, activation=encoders.ACTIVATIONS[get("hidden_act")])
    return heads.on(head, model, config) if head else model


def config_of(model: albert.MaskedLanguageModel) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    _check(model)
    return {
        **about,
        "model_type": "albert",
        "hidden_act": encoders.name_of(model.activation),
        "max_position_embeddings": model.size.length,
        "embedding_size": model.size.embed_width,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        **encoders.options(model.size),
    }


def table(model: albert.MaskedLanguageModel) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    whole, model = model, heads.below(model)
    _check(model)
    size, start = model.size, "albert."
    width, narrow, layer = size.width, size.embedding, "albert_layer_groups.0.albert_layers.0."
    rows = start + "embeddings.position_embeddings.weight"

    def product(here, there, shape):
        part, _, kernel = here.partition("/")
        return linear(f"layers/{part}", f"{start}encoder.{layer}{there}", shape, kernel=kernel)

    def norm(here, there):
        return layer_norm(f"layers/{here}", f"{start}encoder.{layer}{there}", width)

    entries = [
        *encoders.embeddings(size, start),
        Entry("embed/positions/table", rows, (size.length, narrow)),
        *linear("widen", start + "encoder.embedding_hidden_mapping_in", (narrow, width)),
        *product("attention/query", "attention.query", (width, width)),
        *product("attention/key", "attention.key", (width, width)),
        *product("attention/value", "attention.value", (width, width)),
        *product("attention/out", "attention.dense", (width, width)),
        *norm("attention_norm", "attention.LayerNorm"),
        *product("mlp/in", "ffn", (width, size.mlp)),
        *product("mlp/out", "ffn_output", (size.mlp, width)),
        *norm("mlp_norm", "full_layer_layer_norm"),
    ]
    if not isinstance(model, albert.Body):
        entries += encoders.head(size, "predictions", bias="predictions.bias")
    if isinstance(model, albert.Encoder | albert.Model):
        entries += linear("pooler", start + "pooler", (width, width))
    if isinstance(model, albert.Model):
        entries += linear("pair", "sop_classifier.classifier", (width, 2))
    return heads.with_head(whole, entries, _HEADS)


def _check(model: albert.MaskedLanguageModel) -> None:
    if set(model.sharing) != set(albert.ALL):
        shared = ", ".join(model.sharing) or "nothing"
        raise ConfigError(
            f"model.sharing is {shared}: transformers' ALBERT shares {', '.join(albert.ALL)}"
        )
    if not model.size.embed_width:
        raise ConfigError(
            "model.size.embed_width=0: transformers' ALBERT always has a projection after its "
            "embeddings"
        )
    if not model.size.types:
        raise ConfigError("model.size.types=0: transformers' ALBERT has at least 1")
    if model.positions is not None:
        encoding = type(model.positions).__name__
        raise ConfigError(f"model.positions={encoding}: transformers' ALBERT has a learned table")
