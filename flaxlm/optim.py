"""Optimizers and schedules: values that become optax transformations.

Every matrix is [in, out] and may be stacked over layers. Statistics that an optimizer takes over a
whole parameter (Adafactor's factors, update clipping and parameter scale, LAMB's trust ratio,
Muon's orthogonalisation) are taken per layer, as if the layers were separate parameters:
`_per_layer` sees to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from flaxlm.errors import ConfigError
from flaxlm.sharding import path_name

Axes = Mapping[str, tuple[str, ...]]  # parameter path -> dim names


class Schedule(ABC):
    """Learning rate as a function of the step. Subclasses are frozen dataclasses of numbers."""

    @abstractmethod
    def build(self, steps: int) -> optax.Schedule:
        """The optax schedule of a run of `steps` steps; its argument counts from 0."""


@dataclass(frozen=True)
class Constant(Schedule):
    peak: float
    warmup: int = 0

    def build(self, steps):
        return _after_warmup(optax.constant_schedule(self.peak), self.peak, self.warmup)


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear decay from `peak` after the warmup to `end` at the last step (BERT)."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def build(self, steps):
        decay = optax.linear_schedule(self.peak, self.end, max(steps - self.warmup, 1))
        return _after_warmup(decay, self.peak, self.warmup)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `peak` after the warmup to `end` at the last step (GPT)."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def build(self, steps):
        decay = optax.cosine_decay_schedule(
            self.peak, max(steps - self.warmup, 1), self.end / self.peak
        )
        return _after_warmup(decay, self.peak, self.warmup)


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """scale / sqrt(max(step, warmup)): constant during the warmup (T5 section 3.1.2: scale 1,
    warmup 10^4).

    With `ramp`, rises linearly during the warmup instead (the original transformer).
    """

    scale: float = 1.0
    warmup: int = 10_000
    ramp: bool = False

    def build(self, steps):
        def rate(step):
            rate = self.scale / jnp.sqrt(jnp.maximum(step, max(self.warmup, 1)).astype(jnp.float32))
            return rate * jnp.minimum(1.0, (step + 1) / max(self.warmup, 1)) if self.ramp else rate

        return rate


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Linear warmup, constant, then linear decay over the last `decay` steps to `end`."""

    peak: float
    warmup: int = 0
    decay: int = 0
    end: float = 0.0

    def build(self, steps):
        stable = optax.constant_schedule(self.peak)
        fall = optax.linear_schedule(self.peak, self.end, max(self.decay, 1))
        after = max(steps - self.warmup - self.decay, 0)
        return _after_warmup(optax.join_schedules([stable, fall], [after]), self.peak, self.warmup)


def _after_warmup(schedule: optax.Schedule, peak: float, warmup: int) -> optax.Schedule:
    if not warmup:
        return schedule
    # The first step of a ramp of w steps trains at peak / w, not at 0.
    ramp = lambda step: peak * (step + 1) / warmup
    return optax.join_schedules([ramp, schedule], [warmup])


@dataclass(frozen=True)
class Optimizer(ABC):
    """What all optimizers share.

    Attributes:
      schedule: learning rate.
      clip: the global norm of the gradients is clipped to this; 0 is off.
      decay: decoupled weight decay, on matrices only (no norms, biases, relative position tables).
      ema: decay rate of an exponential moving average of the parameters, which evaluation then
        uses; 0 is off.
    """

    schedule: Schedule
    clip: float = 1.0
    decay: float = 0.0
    ema: float = 0.0

    @abstractmethod
    def direction(self, axes: Axes) -> optax.GradientTransformation:
        """Gradients to update directions (sign of the gradient), weight decay included, learning
        rate not.
        """

    def build(self, axes: Axes, steps: int) -> optax.GradientTransformation:
        """The whole transformation, for parameters with these dim names and a run of `steps`
        steps.
        """
        if not 0 <= self.ema < 1:
            raise ConfigError(f"optimizer.ema={self.ema}: a decay rate lies in [0, 1)")
        chain = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        chain += [self.direction(axes), optax.scale_by_learning_rate(self.schedule.build(steps))]
        chain += [average(self.ema)] if self.ema else []
        return optax.chain(*chain)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def direction(self, axes):
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps), _decay(self.decay, axes)
        )


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
class Lamb(Optimizer):
    """LAMB (You et al. 2020): Adam whose step per matrix has the norm of the matrix. Norms and
    biases take Adam's step.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def direction(self, axes):
        def choose(path):
            adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
            if not _is_decayed(axes[path]):
                return adam
            return optax.chain(
                adam, optax.add_decayed_weights(self.decay), optax.scale_by_trust_ratio()
            )

        return _per_layer(choose, axes)


@dataclass(frozen=True)
class Muon(Optimizer):
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
                return optax.scale_by_adam(self.b1, self.b2, self.eps)
            return optax.chain(
                optax.contrib.scale_by_muon(beta=self.momentum), _scale_by_widest_dim(0.2)
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
        return jax.vmap(function) if axes[path][0] == "layers" else function

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


class Average(NamedTuple):
    """State of `average`: the moving average of the parameters, in their own tree."""

    params: Any


def average(rate: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; the last link of a chain, updates
    pass through.
    """

    def init(params):
        return Average(jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        def blend(old, param, change):
            return rate * old + (1 - rate) * (param + change)

        return updates, Average(jax.tree.map(blend, state.params, params, updates))

    return optax.GradientTransformation(init, update)


def averaged(opt, params):
    """The averaged parameters in an optimizer state, or `params` where no average is kept."""
    states = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, Average))
    averages = [state.params for state in states if isinstance(state, Average)]
    return averages[0] if averages else params
