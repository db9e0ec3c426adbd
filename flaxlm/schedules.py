"""Learning rates as values: what published recipes mean by warmup and decay.

Steps count from 0. A ramp of w steps trains its first step at peak / w, not at 0, except where a
published program does: `LinearFromStart`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import jax.numpy as jnp
import optax

from flaxlm.errors import ConfigError


@dataclass(frozen=True)
class Schedule(ABC):
    """Learning rate as a function of the step. Subclasses are frozen dataclasses of numbers."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0 or (field.name in ("peak", "scale") and not value > 0):
                least = "above 0" if field.name in ("peak", "scale") else "0 or more"
                raise ConfigError(f"optimizer.schedule.{field.name}={value}: must be {least}")

    @abstractmethod
    def build(self, steps: int) -> optax.Schedule:
        """The optax schedule of a run of `steps` steps; its argument counts from 0."""


@dataclass(frozen=True)
class Constant(Schedule):
    """`peak` after a linear warmup."""

    peak: float
    warmup: int = 0

    def build(self, steps):
        return _after_warmup(optax.constant_schedule(self.peak), self.peak, self.warmup)


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear decay from `peak` at the end of the warmup to `end` at the last step: continuous, as
    in XLNet and fairseq (RoBERTa, BART).
    """

    peak: float
    warmup: int = 0
    end: float = 0.0

    def build(self, steps):
        decay = optax.linear_schedule(self.peak, self.end, max(steps - self.warmup, 1))
        return _after_warmup(decay, self.peak, self.warmup)


@dataclass(frozen=True)
class LinearFromStart(Schedule):
    """Linear decay from `peak` at step 0 to `end` at the last step, and a warmup laid over it.

    As published: the first step has rate 0, and at the end of BERT's warmup the rate drops from
    peak to what the decay has come to, peak * (1 - warmup / steps) (bert/optimization.py). Nothing
    of this is so in `Linear`.

    Attributes:
      warmup: steps during which the rate is peak * step / warmup in place of the decay.
      multiplied: during the warmup the rate is the decay times step / warmup instead (ELECTRA).
    """

    peak: float
    warmup: int = 0
    end: float = 0.0
    multiplied: bool = False

    def build(self, steps):
        decay = optax.linear_schedule(self.peak, self.end, max(steps, 1))

        def rate(step):
            step = jnp.asarray(step)
            ramp = jnp.minimum(1.0, step / max(self.warmup, 1))
            warm = decay(step) * ramp if self.multiplied else self.peak * ramp
            return jnp.where(step < self.warmup, warm, decay(step))

        return rate


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `peak` after the warmup to `end` at the last step (GPT).

    Attributes:
      steps: the decay ends at this step and the rate stays (GPT-3: at a tenth, after 260 of 300
        billion tokens); 0 is the last step of the run.
    """

    peak: float
    warmup: int = 0
    end: float = 0.0
    steps: int = 0

    def __post_init__(self):
        super().__post_init__()
        if 0 < self.steps <= self.warmup:
            raise ConfigError(
                f"optimizer.schedule.steps={self.steps}: the decay must end after the warmup of "
                f"{self.warmup} steps; 0 is the end of the run"
            )

    def build(self, steps):
        length = max((self.steps or steps) - self.warmup, 1)
        decay = optax.cosine_decay_schedule(self.peak, length, self.end / self.peak)
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
    ramp = lambda step: peak * (step + 1) / warmup
    return optax.join_schedules([ramp, schedule], [warmup])
