"""ELECTRA and transformers' ElectraForPreTraining (the discriminator), ElectraForMaskedLM (the
generator) and its heads for tasks. transformers has no class for the two together: `parts` takes
them apart.
"""

from collections.abc import Mapping

from flaxlm.convert import bert as encoders
from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.bert import Size
from flaxlm.models.electra import (
    Body,
    Chooser,
    Classifier,
    Discriminator,
    Generator,
    Model,
    SpanReader,
    Tagger,
)

MODEL_TYPES = ("electra",)
PREFIX = "electra."
IGNORED = (r"(electra\.)?embeddings\.position_ids",)
ALIASES = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}
TOKENIZER = Template(
    single="cls A sep",
    pair="cls A sep B:1 sep:1",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
)

_CLASSES = {"ElectraForPreTraining": Discriminator, "ElectraForMaskedLM": Generator}

_RATES = ("classifier_dropout", "hidden_dropout_prob")
_HEADS = (
    Head(
        "ElectraForSequenceClassification", Classifier, Body,
        "classifier.out_proj", "classifier.dense", _RATES, 0.1,
    ),
    Head(
        "ElectraForMultipleChoice", Chooser, Body,
        "classifier", "sequence_summary.summary", ("summary_last_dropout",), 0.1,
    ),
    Head("ElectraForTokenClassification", Tagger, Body, "classifier", "", _RATES, 0.1),
    Head("ElectraForQuestionAnswering", SpanReader, Body, "qa_outputs"),
)  # fmt: skip

_DEFAULTS = {  # of transformers' ElectraConfig: a file need not repeat them
    "vocab_size": 30522,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
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
_ACCEPTED = encoders.ACCEPTED | {"hidden_act": ("gelu",)}


def model_of(config: Mapping) -> Discriminator | Generator:
    """The model of a config.json, of the class that its "architectures" says.

    Raises:
      ConfigError: it asks for something that no model here has.
    """
    get = option(config, _DEFAULTS)
    refuse(get, _ACCEPTED)
    embed_width = get("embedding_size")
    size = Size(
        length=get("max_position_embeddings"),
        types=get("type_vocab_size"),
        embed_width=0 if embed_width == get("hidden_size") else embed_width,
        **encoders.numbers(get),
    )
    head = heads.named(config, _HEADS)
    model = (head.encoder if head else encoders.class_of(config, _CLASSES))(size)
    return heads.on(head, model, config) if head else model


def config_of(model: Discriminator | Generator) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    _check(heads.below(model))
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    size = model.size
    return encoders.options(size) | {
        **about,
        "model_type": "electra",
        "hidden_act": "gelu",
        "embedding_size": size.embedding,
        "max_position_embeddings": size.length,
    }


def table(model: Discriminator | Generator) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    whole, model = model, heads.below(model)
    _check(model)
    size, start = model.size, "electra."
    rows = start + "embeddings.position_embeddings.weight"
    entries = [
        *encoders.embeddings(size, start),
        Entry("embed/positions/table", rows, (size.length, size.embedding)),
        *encoders.layers(size, start),
    ]
    if size.embed_width:
        there = start + "embeddings_project"
        entries += linear("widen", there, (size.embedding, size.width))
    if isinstance(model, Generator):
        entries += linear("head/dense", "generator_predictions.dense", (size.width, size.embedding))
        entries += layer_norm("head/norm", "generator_predictions.LayerNorm", size.embedding)
        bias = "generator_lm_head.bias"
        entries.append(Entry("head/bias", bias, (size.vocab,), vocab_dim=0))
    elif isinstance(model, Discriminator):
        there = "discriminator_predictions"
        entries += linear("dense", there + ".dense", (size.width, size.width))
        entries += linear("replaced", there + ".dense_prediction", (size.width, 1))
    return heads.with_head(whole, entries, _HEADS)


def parts(model: Model, params: Mapping) -> dict[str, tuple]:
    """{name: (module, parameters)} of the nets of a pretrained pair, each with the shared tables;
    {} of a net that is alone.
    """
    if type(model) is not Model:
        return {}
    made = {
        "discriminator": Discriminator(model.size.discriminator, model.compute),
        "generator": Generator(model.size.generator, model.compute),
    }
    return {name: (part, {"embed": params["embed"], **params[name]}) for name, part in made.items()}


def _check(model) -> None:
    if type(model) is Model:
        raise ConfigError(
            "transformers has no class for generator and discriminator together: convert one of "
            "them, --part discriminator or --part generator"
        )
    if isinstance(model, Generator) and model.positions is not None:
        encoding = type(model.positions).__name__
        raise ConfigError(f"model.positions={encoding}: transformers' ELECTRA has a learned table")
    if not model.size.types:
        raise ConfigError("model.size.types=0: transformers' ELECTRA has at least 1")
