"""TinyBERT, written as transformers' BertForPreTraining: its published checkpoints are BERTs, with
the matrix `fit` of the distillation left out.
"""

import dataclasses
from collections.abc import Mapping

from flaxlm.models import bert, tinybert

MODEL_TYPES = ()  # a folder says "bert", and is read as one


def parts(model: tinybert.Model, params: Mapping) -> dict[str, tuple]:
    """{name: (module, parameters)}: the encoder with its heads, without `fit`."""
    numbers = {f.name: getattr(model.size, f.name) for f in dataclasses.fields(bert.Size)}
    made = bert.Model(
        bert.Size(**numbers), model.compute, activation=model.activation, positions=model.positions
    )
    return {"encoder": (made, {name: part for name, part in params.items() if name != "fit"})}
