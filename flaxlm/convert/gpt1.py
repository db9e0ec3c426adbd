"""GPT-1 and transformers' OpenAIGPTLMHeadModel, the bare OpenAIGPTModel or its head for rows."""

from collections.abc import Iterator, Mapping

from flaxlm.convert import heads
from flaxlm.convert.heads import Head
from flaxlm.convert.table import Entry, layer_norm, option, refuse
from flaxlm.convert.tokenizer import Template
from flaxlm.errors import ConfigError
from flaxlm.models.gpt1 import Classifier, Model, Size

MODEL_TYPES = ("openai-gpt",)
ALIASES = {"lm_head.weight": "transformer.tokens_embed.weight"}
PREFIX = "transformer."
TOKENIZER = Template("A", "A B")
IGNORED = (
    r"(transformer\.)?h\.\d+\.attn\.bias",  # the causal mask
    r"(transformer\.)?position_ids",
)

_CLASSES = {"OpenAIGPTLMHeadModel": Model}
_HEADS = (Head("OpenAIGPTForSequenceClassification", Classifier, Model, "score"),)

_DEFAULTS = {  # of transformers' OpenAIGPTConfig: a file need not repeat them
    "vocab_size": 40478,
    "n_positions": 512,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "afn": "gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def model_of(config: Mapping) -> Model:
    """The model of a config.json.

    Raises:
      ConfigError: it asks for something that the published model does not have.
    """
    get = option(config, _DEFAULTS)
    refuse(get, {"afn": ("gelu",), "tie_word_embeddings": (True,)})  # their "gelu" is the tanh one
    model = Model(Size(mlp=4 * get("n_embd"), **numbers(get)))
    head = heads.named(config, _HEADS)
    return heads.on(head, model, config) if head else model


def numbers(get) -> dict:
    """Fields of a `Size` from an option getter of a config.json, all but mlp.

    Raises:
      ConfigError: the heads do not divide the width, or dropout rates differ.
    """
    rates = {name: get(name) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if len(set(rates.values())) > 1:
        shown = ", ".join(f"{name}={rate}" for name, rate in rates.items())
        raise ConfigError(f"config.json: {shown}; a model here has one rate, make them equal")
    width, heads = get("n_embd"), get("n_head")
    if width % heads:
        raise ConfigError(f"config.json: n_embd={width} is no multiple of n_head={heads}")
    return dict(
        depth=get("n_layer"),
        width=width,
        heads=heads,
        head_dim=width // heads,
        vocab=get("vocab_size"),
        positions=get("n_positions"),
        dropout=rates["embd_pdrop"],
        eps=get("layer_norm_epsilon"),
    )


def config_of(model: Model) -> dict:
    """The config.json of a model.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    model, about = heads.taken_apart(model, _CLASSES, _HEADS)
    if model.size.mlp != 4 * model.size.width:
        raise ConfigError(
            f"model.size.mlp={model.size.mlp}: transformers' OpenAIGPTModel has 4 x width "
            f"({4 * model.size.width})"
        )
    return {
        **about,
        "model_type": "openai-gpt",
        "afn": "gelu",
        **options(model.size),
    }


def options(size: Size) -> dict:
    """The fields of a config.json that `numbers` reads.

    Raises:
      ConfigError: the heads together are not as wide as the model.
    """
    if size.heads * size.head_dim != size.width:
        raise ConfigError(
            f"model.size: {size.heads} heads of {size.head_dim} are not the width {size.width}; "
            "transformers has no such model of this family"
        )
    return {
        "vocab_size": size.vocab,
        "n_positions": size.positions,
        "n_embd": size.width,
        "n_layer": size.depth,
        "n_head": size.heads,
        "resid_pdrop": size.dropout,
        "embd_pdrop": size.dropout,
        "attn_pdrop": size.dropout,
        "layer_norm_epsilon": size.eps,
        "tie_word_embeddings": True,
    }


def table(model: Model) -> list[Entry]:
    """All parameters of a model, and their tensors."""
    size, start = model.size, "transformer."
    entries = [
        Entry("embed/table", start + "tokens_embed.weight", (size.vocab, size.width), vocab_dim=0),
        Entry("positions/table", start + "positions_embed.weight", (size.positions, size.width)),
        *layers(size),
    ]
    return heads.with_head(model, entries, _HEADS)


def layers(size: Size) -> Iterator[Entry]:
    """The entries of the layers. Their Conv1D kernels are [in, out] as ours; query, key and value
    are one.
    """
    inner = size.heads * size.head_dim

    def projection(ours, theirs, shape, part=(0, 1)):
        for name, tensor, dims in ((ours, "weight", shape), (f"{ours}_bias", "bias", shape[1:])):
            yield Entry(
                f"layers/{name}",
                f"transformer.h.{{}}.{theirs}.{tensor}",
                dims,
                size.depth,
                part=part,
            )

    for number, name in enumerate(("attention_norm", "mlp_norm"), 1):
        theirs = f"transformer.h.{{}}.ln_{number}"
        yield from layer_norm(f"layers/{name}", theirs, size.width, layers=size.depth)
    for number, name in enumerate(("query", "key", "value")):
        yield from projection(
            f"attention/{name}", "attn.c_attn", (size.width, inner), part=(number, 3)
        )
    yield from projection("attention/out", "attn.c_proj", (inner, size.width))
    yield from projection("mlp/in", "mlp.c_fc", (size.width, size.mlp))
    yield from projection("mlp/out", "mlp.c_proj", (size.mlp, size.width))
