"""What objectives that predict a token per position share: loss, shift, weights of text."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from flaxlm.batch import Batch, Features
from flaxlm.decode import greedy
from flaxlm.errors import ConfigError
from flaxlm.losses import cross_entropy
from flaxlm.objectives.base import Apply, Objective, Outputs, Term


@dataclass(frozen=True, kw_only=True)
class TokenObjective(Objective):
    """Cross-entropy of `targets` under the model's "logits", averaged over `weights`.

    Attributes:
      z_loss: factor of log(Z)^2, which keeps the softmax normaliser near 1 (1e-4 in T5); 0 leaves
        the term out.
    """

    z_loss: float = 0.0

    def __post_init__(self):
        if self.z_loss < 0:
            raise ConfigError(f"objective.z_loss={self.z_loss} must be 0 or more (T5 uses 1e-4)")

    def forward(self, apply: Apply, batch: Batch, rng) -> Outputs:
        """One call of the model; adds "nll" and "log_z", both fp32 of the shape of `targets`."""
        outputs = apply(batch, rng=rng)
        nll, log_z = cross_entropy(outputs["logits"], batch["targets"])
        return {**outputs, "nll": nll, "log_z": log_z}

    @property
    def terms(self) -> Mapping[str, Term]:
        """The loss "nll", the metric "text_nll" over pieces of text alone, and "z_loss" if any."""
        terms = {
            "nll": Term(lambda outputs, batch: outputs["nll"], "weights"),
            "text_nll": Term(lambda outputs, batch: outputs["nll"], "text_weights", scale=0.0),
        }
        if self.z_loss:
            terms["z_loss"] = Term(
                lambda outputs, batch: outputs["log_z"] ** 2, "weights", scale=self.z_loss
            )
        return terms


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderObjective(TokenObjective):
    """A `TokenObjective` for encoder-decoders: its targets can be generated from its inputs."""

    def predict(self, apply: Apply, batch: Batch) -> jax.Array:
        """[B, M] ids decoded greedily, as long as the targets may be."""
        return greedy(apply, batch)

    def guessed(self, features: Features, predicted: np.ndarray, vocab) -> Features:
        """A prediction is as long as it says: it ends with its first eos, what follows is noise."""
        ended = np.cumsum(predicted == vocab.eos, axis=1) - (predicted == vocab.eos) > 0
        return {
            **features,
            "targets": np.where(ended, np.int32(vocab.pad), predicted),
            "weights": (~ended).astype(np.float32),
            "decoder_segments": (~ended).astype(np.int32),
        }


def shift_right(targets: np.ndarray, start: int) -> np.ndarray:
    """[B, L] targets -> [B, L] decoder inputs: `start`, then all targets but the row's last."""
    inputs = np.empty_like(targets)
    inputs[:, 0] = start
    inputs[:, 1:] = targets[:, :-1]
    return inputs


def text_weights(targets: np.ndarray, weights: np.ndarray, vocab) -> np.ndarray:
    """[B, L] float32: 1 where `weights` is above 0 and the target is neither sentinel nor eos."""
    special = np.zeros(vocab.size, bool)
    special[vocab.sentinels] = True
    special[vocab.eos] = True
    return ((weights > 0) & ~special.take(targets, mode="clip")).astype(np.float32)
