"""DistilBERT and transformers' DistilBertForMaskedLM or one of its heads for tasks."""

from collections.abc import Mapping

from flaxlm.convert import bert as encoders
from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.distilbert import (
    Body,
    Chooser,
    Classifier,
    Model,
    Size,
    SpanReader,
    Tagger,
)

MODEL_TYPES = ("distilbert",)
PREFIX = "distilbert."
IGNORED = (r"(distilbert\.)?embeddings\.position_ids",)
ALIASES = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
TOKENIZER = Template(single="cls A sep", pair="cls A sep B sep")

_CLASSES = {"DistilBertForMaskedLM": Model}

_RATE = ("seq_classif_dropout",)
_HEADS = (
    Head(
        "DistilBertForSequenceClassification", Classifier, Body,
        "classifier", "pre_classifier", _RATE, 0.2,
    ),
    Head(
        "DistilBertForMultipleChoice", Chooser, Body, "classifier", "pre_classifier", _RATE, 0.2
    ),
    Head("DistilBertForTokenClassification", Tagger, Body, "classifier", "", ("dropout",), 0.1),
    Head(
        "DistilBertForQuestionAnswering", SpanReader, Body, "qa_outputs", "", ("qa_dropout",), 0.1
    ),
)  # fmt: skip

_DEFAULTS = {  # of transformers' DistilBertConfig: a file need not repeat them
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "sinusoidal_pos_embds": False,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "tie_word_embeddings": True,
}


def model_of(config: Mapping) -> Model:
    """The model of a config.json. Sinusoidal positions are a table in the file like any other.

    Raises:
      ConfigError: it asks for something that no model here has.
    """
    get = option(config, _DEFAULTS)
    refuse(get, {"activation": ("gelu",), "tie_word_embeddings": (True,)})
    size = Size(
        depth=get("n_layers"),
        width=get("dim"),
        mlp=get("hidden_dim"),
        heads=get("n_heads"),
        vocab=get("vocab_size"),
        length=get("max_position_embeddings"),
        dropout=get("dropout"),
        attention_dropout=get("attention_dropout"),
    )
    head = heads.named(config, _HEADS)
    model = (head.encoder if head else encoders.class_of(config, _CLASSES))(size)
    return heads.on(head, model, config) if head else model


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no such model.
    """
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    _check(model)
    size = model.size
    return {
        "model_type": "distilbert",
        "vocab_size": size.vocab,
        "max_position_embeddings": size.length,
        "sinusoidal_pos_embds": False,
        "n_layers": size.depth,
        "n_heads": size.heads,
        "dim": size.width,
        "hidden_dim": size.mlp,
        "dropout": size.dropout,
        "attention_dropout": size.attention_dropout,
        "activation": "gelu",
        "tie_word_embeddings": True,
        **about,
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no such model.
    """
    whole, model = model, heads.below(model)
    _check(model)
    size, start, depth = model.size, "distilbert.", model.size.depth
    width, layer = size.width, start + "transformer.layer.{}."

    def product(part, kernel, there, shape):
        return linear(f"layers/{part}", layer + there, shape, kernel=kernel, layers=depth)

    rows = start + "embeddings.position_embeddings.weight"
    entries = [
        *encoders.embeddings(size, start),
        Entry("embed/positions/table", rows, (size.length, width)),
        *product("attention", "query", "attention.q_lin", (width, width)),
        *product("attention", "key", "attention.k_lin", (width, width)),
        *product("attention", "value", "attention.v_lin", (width, width)),
        *product("attention", "out", "attention.out_lin", (width, width)),
        *layer_norm("layers/attention_norm", layer + "sa_layer_norm", width, layers=depth),
        *product("mlp", "in", "ffn.lin1", (width, size.mlp)),
        *product("mlp", "out", "ffn.lin2", (size.mlp, width)),
        *layer_norm("layers/mlp_norm", layer + "output_layer_norm", width, layers=depth),
    ]
    if not isinstance(model, Body):
        entries += linear("head/dense", "vocab_transform", (width, width))
        entries += layer_norm("head/norm", "vocab_layer_norm", width)
        entries.append(Entry("head/bias", "vocab_projector.bias", (size.vocab,), vocab_dim=0))
    return heads.with_head(whole, entries, _HEADS)


def _check(model: Model) -> None:
    size = model.size
    if size.types or size.embed_width or model.positions is not None or size.eps != 1e-12:
        raise ConfigError(
            f"model.size.types={size.types}, embed_width={size.embed_width}, eps={size.eps:g}, "
            f"model.positions={model.positions}: transformers' DistilBERT has 0, 0, 1e-12 and a "
            "learned table"
        )
