"""Optimizers: values that become optax transformations. Their learning rates: `schedules`.

Every matrix is [in, out] and may be stacked over layers. Statistics that an optimizer takes over a
whole parameter (Adafactor's factors, update clipping and parameter scale, LAMB's trust ratio,
Muon's orthogonalisation) are taken per layer, as if the layers were separate parameters:
`_per_layer` sees to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import optax
import optax.contrib

from flaxlm import moments
from flaxlm.averages import average, averaged
from flaxlm.errors import ConfigError, nearest
from flaxlm.named import path_name
from flaxlm.rates import Rate, scaled, unfrozen
from flaxlm.schedules import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    LinearFromStart,
    Schedule,
    WarmupStableDecay,
)

__all__ = [
    "Adafactor",
    "AdamW",
    "Constant",
    "Cosine",
    "InverseSquareRoot",
    "Lamb",
    "Linear",
    "LinearFromStart",
    "Muon",
    "Optimizer",
    "Rate",
    "Schedule",
    "WarmupStableDecay",
    "average",
    "averaged",
]

Axes = Mapping[str, tuple[str, ...]]  # parameter path -> dim names


@dataclass(frozen=True)
class Optimizer(ABC):
    """What all optimizers share.

    Attributes:
      schedule: learning rate.
      clip: the global norm of the gradients is clipped to this; 0 is off.
      clip_each: the norm of each parameter's gradient is clipped to this (TinyBERT, ERNIE: 1),
        after `clip`; 0 is off.
      decay: decoupled weight decay, on matrices only (no norms, biases, relative position tables).
      ema: decay rate of an exponential moving average of the parameters, which evaluation then
        uses; 0 is off.
      layer_decay: from the head down, every layer learns at so many times the rate of the one above
        it (`flaxlm.rates`); 1 is off.
      rates: of parts of the model, relative to the others.
      unfreeze: steps after which one more layer learns, the head first (`flaxlm.rates`); 0: all do
        from the first.
    """

    schedule: Schedule
    clip: float = 1.0
    clip_each: float = 0.0
    decay: float = 0.0
    ema: float = 0.0
    layer_decay: float = 1.0
    rates: tuple[Rate, ...] = ()
    unfreeze: int = 0

    def __post_init__(self):
        for name in ("clip", "clip_each", "decay", "unfreeze"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)}: must be 0 or more")
        for name in ("ema", "b1", "b2", "momentum"):
            if hasattr(self, name) and not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"optimizer.{name}={getattr(self, name)}: a decay rate lies in [0, 1)"
                )
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay={self.layer_decay}: above 0, at most 1")
        if hasattr(self, "eps") and not self.eps > 0:
            raise ConfigError(f"optimizer.eps={self.eps}: must be above 0 (1e-8, 1e-6)")

    @abstractmethod
    def direction(self, axes: Axes) -> optax.GradientTransformation:
        """Gradients to update directions (sign of the gradient), weight decay included, learning
        rate not.
        """

    def build(self, axes: Axes, steps: int) -> optax.GradientTransformation:
        """The whole transformation, for parameters with these dim names and a run of `steps`
        steps.
        """
        chain = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        if self.clip_each:
            chain += [_per_layer(lambda path: optax.clip_by_global_norm(self.clip_each), axes)]
        chain += [self.direction(axes), optax.scale_by_learning_rate(self.schedule.build(steps))]
        if self.layer_decay != 1 or self.rates:
            chain += [scaled(self.rates, self.layer_decay, axes)]
        chain += [unfrozen(self.unfreeze, axes)] if self.unfreeze else []
        chain += [average(self.ema)] if self.ema else []
        return optax.chain(*chain)


@dataclass(frozen=True)
class WithMoments(Optimizer):
    """What optimizers share that keep moments as large as the parameters.

    Attributes:
      first_moment, second_moment: what they are kept in between steps: "float32", as published, or
        "bfloat16", half the memory. See `moments`: the second is then rounded at random.
    """

    first_moment: str = "float32"
    second_moment: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        for name in ("first_moment", "second_moment"):
            found = getattr(self, name)
            if found not in moments.TYPES:
                raise ConfigError(f"optimizer.{name}={found!r}: {nearest(found, moments.TYPES)}")

    def keep(self, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
        """The transformation, its moments kept so."""
        return moments.kept(transformation, first=self.first_moment, second=self.second_moment)


@dataclass(frozen=True)
class AdamW(WithMoments):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
      b1, b2: decay rates of the first and second moment.
      eps: added to the root of the second moment.
      debias: divide the moments by 1 - b^t; False is BERT's Adam (bert/optimization.py), whose
        first steps are (1 - b1) / sqrt(1 - b2) = 3.2 times as large.
      decay_on: "matrices", or "all": norms and biases too, as fairseq (RoBERTa, BART).
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    debias: bool = True
    decay_on: str = "matrices"

    def __post_init__(self):
        super().__post_init__()
        if self.decay_on not in ("matrices", "all"):
            known = nearest(self.decay_on, ["matrices", "all"])
            raise ConfigError(f"optimizer.decay_on={self.decay_on!r}: {known}")

    def direction(self, axes):
        adam = self.keep(moments.adam(self.b1, self.b2, self.eps, debias=self.debias))
        if self.decay_on == "all":
            return optax.chain(adam, optax.add_decayed_weights(self.decay))
        return optax.chain(adam, _decay(self.decay, axes))


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018) as T5 trains with it: no momentum, updates relative to the
    parameter's scale.

    Second-moment decay 1 - t^-0.8, factored where both dims of a matrix are at least `factor_from`,
    updates clipped to RMS `update_clip`, steps multiplied by the RMS of the parameter (at least
    `least_scale`).
    """

    clip: float = 0.0
    factor_from: int = 128
    update_clip: float = 1.0
    least_scale: float = 1e-3

    def direction(self, axes):
        def choose(path):
            return optax.chain(
                optax.scale_by_factored_rms(min_dim_size_to_factor=self.factor_from),
                optax.clip_by_block_rms(self.update_clip),
                optax.scale_by_param_block_rms(self.least_scale),
            )

        return optax.chain(_per_layer(choose, axes), _decay(self.decay, axes))


@dataclass(frozen=True)
class Lamb(WithMoments):
    """LAMB (You et al. 2020): Adam whose step per matrix, decay included, has the norm of the
    matrix. Norms and biases take Adam's step, and so does a matrix whose norm or step is 0.

    Attributes:
      b1, b2, eps: as `AdamW`.
      debias: as `AdamW`; ALBERT's LAMB (albert/lamb_optimizer.py) has False.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    debias: bool = True

    def direction(self, axes):
        def choose(path):
            adam = self.keep(moments.adam(self.b1, self.b2, self.eps, debias=self.debias))
            if not _is_decayed(axes[path]):
                return adam
            return optax.chain(
                adam, optax.add_decayed_weights(self.decay), optax.scale_by_trust_ratio()
            )

        return _per_layer(choose, axes)


@dataclass(frozen=True)
class Muon(WithMoments):
    """Muon (Jordan 2024) on the matrices of the layers, Adam on embeddings, heads, norms and
    biases.

    Orthogonalised updates are scaled by 0.2 sqrt(max(in, out)), so that one learning rate and one
    decay serve both kinds of parameters (Liu et al. 2025, section 2.2).
    """

    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def direction(self, axes):
        def choose(path):
            if not _is_decayed(axes[path]) or "vocab" in axes[path]:
                return self.keep(moments.adam(self.b1, self.b2, self.eps))
            return optax.chain(
                self.keep(optax.contrib.scale_by_muon(beta=self.momentum)),
                _scale_by_widest_dim(0.2),
            )

        return optax.chain(_per_layer(choose, axes), _decay(self.decay, axes))


def _is_decayed(axes: tuple[str, ...]) -> bool:
    """Whether a parameter is a matrix that weight decay, LAMB and Muon treat as one."""
    return len([name for name in axes if name != "layers"]) >= 2 and "buckets" not in axes


def _decay(rate: float, axes: Axes) -> optax.GradientTransformation:
    if not rate:
        return optax.identity()

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _is_decayed(axes[path_name(path)]), params
        )

    return optax.add_decayed_weights(rate, mask)


def _scale_by_widest_dim(factor: float) -> optax.GradientTransformation:
    def scale(update):
        return factor * max(update.shape) ** 0.5 * update

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


def _per_layer(
    choose: Callable[[str], optax.GradientTransformation], axes: Axes
) -> optax.GradientTransformation:
    """Run a transformation of its own on every parameter, and on every layer of a stacked one.

    Args:
      choose: parameter path -> its transformation.
      axes: dim names; a parameter whose first dim is "layers" is a stack.

    The state is a dict from parameter path to that parameter's state.
    """

    def over_layers(path, function):
        return jax.vmap(function) if axes[path][:1] == ("layers",) else function

    def flat(tree):
        return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    def init(params):
        return {
            path: over_layers(path, choose(path).init)(leaf) for path, leaf in flat(params).items()
        }

    def update(updates, state, params=None):
        leaves, new = [], {}
        weights = flat(params)
        for path, gradient in flat(updates).items():
            step = over_layers(path, choose(path).update)
            leaf, new[path] = step(gradient, state[path], weights[path])
            leaves.append(leaf)
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), new

    return optax.GradientTransformation(init, update)
