"""`tiny_span` with rows that bring about what a diverging run has: a loss, a gradient or an
activation that is no number, or a loss that stands out.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from experiments.tiny_span import experiment as base

from flaxlm.objectives.base import Term
from flaxlm.objectives.span_corruption import SpanCorruption


@dataclass(frozen=True, kw_only=True)
class Poisoned(SpanCorruption):
    """Rows `first` to `last` - 1 of the run are poisoned.

    Attributes:
      how: "loss" is NaN; "gradient" is, and the loss as it should be; an "activation" is infinite;
        the loss is a "spike".
    """

    first: int = 0
    last: int = 0
    how: str = "loss"

    def prepare(self, rows, rng, vocab):
        bad = (rows.index >= self.first) & (rows.index < self.last)
        return {**super().prepare(rows, rng, vocab), "label_weights": bad.astype(np.float32)}

    @property
    def terms(self):
        def poisoned(outputs, batch):
            values = nll.values(outputs, batch)
            bad = batch["label_weights"][:, None] > 0
            if self.how == "loss":
                return jnp.where(bad, jnp.nan, values)
            if self.how == "activation":
                return jnp.where(bad, jnp.exp(values + jnp.where(bad, 200.0, 0.0)), values)
            if self.how == "gradient":  # the slope of a root at 0
                return values + jnp.where(bad, jnp.sqrt(jnp.where(bad, 0 * values, 1.0)), 0.0)
            return jnp.where(bad, 30 * values, values)

        terms = super().terms
        nll = terms["nll"]
        return {**terms, "nll": Term(poisoned, nll.weights, nll.scale)}


experiment = replace(base, objective=Poisoned())
