"""RoBERTa and transformers' RobertaForMaskedLM, the bare RobertaModel or one of its heads for
tasks.

Theirs has a table of one token type, which fairseq and we do not have: every token gets its row, so
reading adds it to every row of the position table and writing writes a row of zeros.
"""

from collections.abc import Mapping

from flaxlm.convert import bert as encoders
from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, linear, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.bert import gelu_erf
from flaxlm.models.roberta import (
    OFFSET,
    Body,
    Chooser,
    Classifier,
    Encoder,
    Model,
    Size,
    SpanReader,
    Tagger,
)

MODEL_TYPES = ("roberta",)
PREFIX = "roberta."
IGNORED = (
    r"(roberta\.)?embeddings\.position_ids",
    r"roberta\.pooler\.dense\.(weight|bias)",  # was never trained
)
ALIASES = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
TOKENIZER = Template(single="cls A sep", pair="cls A sep sep B sep")

_CLASSES = {"RobertaForMaskedLM": Model, "RobertaModel": Encoder}

_RATES = ("classifier_dropout", "hidden_dropout_prob")
_HEADS = (
    Head(
        "RobertaForSequenceClassification", Classifier, Body,
        "classifier.out_proj", "classifier.dense", _RATES, 0.1,
    ),
    Head("RobertaForMultipleChoice", Chooser, Encoder, "classifier", "", _RATES[1:], 0.1),
    Head("RobertaForTokenClassification", Tagger, Body, "classifier", "", _RATES, 0.1),
    Head("RobertaForQuestionAnswering", SpanReader, Body, "qa_outputs"),
)  # fmt: skip

_DEFAULTS = {  # of transformers' RobertaConfig: a file need not repeat them
    "vocab_size": 50265,
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
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# The head's activation is "gelu" whatever the config says. Positions count from the row after that
# of the padding id; there is one type.
_ACCEPTED = encoders.ACCEPTED | {
    "hidden_act": ("gelu",),
    "pad_token_id": (OFFSET - 1,),
    "type_vocab_size": (1,),
}


def model_of(config: Mapping) -> Model:
    """The model of a config.json, of the class that its "architectures" says.

    Raises:
      ConfigError: it asks for something that no model here has.
    """
    get = option(config, _DEFAULTS)
    refuse(get, _ACCEPTED)
    size = Size(length=get("max_position_embeddings") - OFFSET, types=0, **encoders.numbers(get))
    head = heads.named(config, _HEADS)
    model = (head.encoder if head else encoders.class_of(config, _CLASSES))(size)
    return heads.on(head, model, config) if head else model


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    _check(model)
    return encoders.options(model.size) | {
        **about,
        "model_type": "roberta",
        "hidden_act": "gelu",
        "max_position_embeddings": model.size.length + OFFSET,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "pad_token_id": OFFSET - 1,
        "eos_token_id": 2,
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    whole, model = model, heads.below(model)
    _check(model)
    size, start = model.size, "roberta."
    positions = Entry(
        "embed/positions/table",
        start + "embeddings.position_embeddings.weight",
        (size.length + OFFSET, size.width),
        plus=start + "embeddings.token_type_embeddings.weight",
    )
    entries = [*encoders.embeddings(size, start), positions, *encoders.layers(size, start)]
    if isinstance(model, Encoder):
        entries += linear("pooler", start + "pooler.dense", (size.width, size.width))
    if not isinstance(model, Body):
        entries += encoders.head(size, "lm_head", bias="lm_head.bias", norm="layer_norm")
    return heads.with_head(whole, entries, _HEADS)


def _check(model: Model) -> None:
    size = model.size
    if size.types or size.embed_width:
        raise ConfigError(
            f"model.size.types={size.types}, embed_width={size.embed_width}: transformers' "
            "RoBERTa has neither types of meaning nor a projection; make both 0"
        )
    if model.activation is not gelu_erf:
        raise ConfigError("model.activation: transformers' RoBERTa has gelu_erf")
    if model.positions is not None:
        encoding = type(model.positions).__name__
        raise ConfigError(f"model.positions={encoding}: transformers' RoBERTa has a learned table")
