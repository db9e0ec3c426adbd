"""GPT-2 and transformers' GPT2LMHeadModel, the bare GPT2Model or its head for rows."""

from collections.abc import Mapping

from flaxlm.convert import heads
from flaxlm.convert.gpt1 import layers, numbers, options
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.gpt2 import Classifier, Model, Size

MODEL_TYPES = ("gpt2",)
ALIASES = {"lm_head.weight": "transformer.wte.weight"}
PREFIX = "transformer."
TOKENIZER = Template("A", "A B")
IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)  # the causal mask

_CLASSES = {"GPT2LMHeadModel": Model}
_HEADS = (Head("GPT2ForSequenceClassification", Classifier, Model, "score"),)

_DEFAULTS = {  # of transformers' GPT2Config: a file need not repeat them
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_ACCEPTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def model_of(config: Mapping) -> Model:
    """The model of a config.json.

    Raises:
      ConfigError: it asks for something that the published model does not have.
    """
    get = option(config, _DEFAULTS)
    refuse(get, _ACCEPTED)
    model = Model(Size(mlp=get("n_inner") or 4 * get("n_embd"), **numbers(get)))
    head = heads.named(config, _HEADS)
    return heads.on(head, model, config) if head else model


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    _check(heads.below(model))
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    return {
        **about,
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_inner": model.size.mlp,
        **options(model.size),
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors.

    Raises:
      ConfigError: the model is not of the published form.
    """
    _check(heads.below(model))
    size, start = model.size, "transformer."
    entries = [
        Entry("embed/table", start + "wte.weight", (size.vocab, size.width), vocab_dim=0),
        Entry("positions/table", start + "wpe.weight", (size.positions, size.width)),
        *layers(size),
        *layer_norm("norm", start + "ln_f", size.width),
    ]
    return heads.with_head(model, entries, _HEADS)


def _check(model: Model) -> None:
    if type(model) is not Model:
        raise ConfigError("transformers has no GPT-2 with banded layers")
    if model.positions is not None:
        encoding = type(model.positions).__name__
        raise ConfigError(f"model.positions={encoding}: transformers' GPT-2 has a learned table")
