"""Heads for tasks as transformers has them (`*ForSequenceClassification` and the like): what the
converters of all families have in common. A family lists its heads; its own tables are those of the
encoder below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import flax.linen as nn

from flaxlm.convert.table import Entry, linear
from flaxlm.errors import ConfigError, DataError
from flaxlm.nn.heads import Tuned


@dataclass(frozen=True)
class Head:
    """One head of a family.

    Attributes:
      theirs: name of transformers' class.
      made: our class.
      encoder: our class below it.
      out: name of their last layer.
      dense: name of their layer before that; "": there is none.
      dropout: fields of config.json that say the rate, the first that is there and not null; () is
        no dropout.
      rate: where none of them is there.
    """

    theirs: str
    made: type[Tuned]
    encoder: type[nn.Module]
    out: str
    dense: str = ""
    dropout: tuple[str, ...] = ()
    rate: float = 0.0

    @property
    def counts_labels(self) -> bool:
        """Whether config.json says how wide the head is."""
        return self.theirs.endswith(("SequenceClassification", "TokenClassification"))


def named(config: Mapping, heads: Sequence[Head]) -> Head | None:
    """The head that the first of a config.json's "architectures" is, if any."""
    name = (config.get("architectures") or [""])[0]
    return next((head for head in heads if head.theirs == name), None)


def on(head: Head, encoder: nn.Module, config: Mapping) -> Tuned:
    """The model of a config.json from its encoder.

    Raises:
      DataError: the labels are no table.
    """
    rates = [config[name] for name in head.dropout if config.get(name) is not None]
    rate = rates[0] if rates else head.rate
    if not head.counts_labels:
        return head.made(encoder, dropout=rate)
    if "id2label" in config:
        if not isinstance(config["id2label"], dict):
            raise DataError("config.json: id2label is not a table of labels")
        return head.made(encoder, classes=len(config["id2label"]), dropout=rate)
    return head.made(encoder, classes=config.get("num_labels") or 2, dropout=rate)


def taken_apart(
    model: nn.Module, classes: Mapping[str, type], heads: Sequence[Head]
) -> tuple[nn.Module, dict]:
    """(what the family's own tables describe, the fields of config.json that say what it is part
    of) of a model with a head or without.

    Args:
      classes: {transformers' name: our class} of models without a head for tasks.

    Raises:
      ConfigError: transformers has no class for this model.
    """
    if isinstance(model, Tuned):
        head = _of(model, heads)
        labels = [f"LABEL_{n}" for n in range(model.classes)]
        about = {"architectures": [head.theirs]}
        if head.counts_labels:
            about["id2label"] = {str(n): label for n, label in enumerate(labels)}
            about["label2id"] = {label: n for n, label in enumerate(labels)}
        if head.dropout:
            about[head.dropout[0]] = model.dropout
        return model.encoder, about
    names = {made: name for name, made in classes.items()}
    if type(model) not in names:
        raise ConfigError(
            f"transformers has no {type(model).__name__} like this one; of its kind it has "
            f"{', '.join(classes)}"
        )
    return model, {"architectures": [names[type(model)]]}


def below(model: nn.Module) -> nn.Module:
    """What the family's own tables describe."""
    return model.encoder if isinstance(model, Tuned) else model


def with_head(model: nn.Module, entries: Sequence[Entry], heads: Sequence[Head]) -> list[Entry]:
    """The entries of a model, from those of what is `below` its head.

    Raises:
      ConfigError: transformers has no such head.
    """
    if not isinstance(model, Tuned):
        return list(entries)
    head, width = _of(model, heads), model.size.width
    found = [replace(entry, ours=f"encoder/{entry.ours}") for entry in entries]
    if head.dense:
        found += linear("dense", head.dense, (width, width))
    last = linear("head", head.out, (width, model.classes))
    return found + (last if model.biased else last[:1])


def _of(model: Tuned, heads: Sequence[Head]) -> Head:
    made = [head for head in heads if head.made is type(model)]
    if not made:
        raise ConfigError(f"transformers has no {type(model).__name__} of this family")
    head = next((head for head in made if head.encoder is type(model.encoder)), None)
    if head is None:
        kinds = " or a ".join(head.encoder.__name__ for head in made)
        raise ConfigError(
            f"{made[0].theirs} is a {type(model).__name__} on a {kinds}; this one is on a "
            f"{type(model.encoder).__name__}"
        )
    if not head.counts_labels and model.classes != head.made.classes:
        raise ConfigError(
            f"model.classes={model.classes}: {head.theirs} has {head.made.classes} output(s)"
        )
    return head
