"""How strongly a model is led, and how its tokens are drawn."""

from dataclasses import dataclass

from flaxlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Steering:
    """How strongly, and how the next token is drawn.

    Attributes:
      step: size of a step against the gradient.
      iterations: steps for every token.
      gamma: the gradient is divided by its norm to this power.
      fusion: share of the moved model in the geometric mean with the one that was not.
      kl: weight of the divergence of the moved distribution from the other.
      window: only the keys and values of so many last tokens are moved; 0: all.
      oldest: the window lies at the first tokens instead, as it does in the published code.
      until: new tokens after which nothing is moved any more; 0: never.
      temperature: of the moved distribution.
      top_k: draw among the k most likely tokens.
      sample: draw; else the most likely token is taken.
    """

    step: float = 0.02
    iterations: int = 3
    gamma: float = 1.5
    fusion: float = 0.9
    kl: float = 0.01
    window: int = 0
    oldest: bool = False
    until: int = 0
    temperature: float = 1.0
    top_k: int = 10
    sample: bool = True

    def __post_init__(self):
        for name in ("step", "gamma", "kl", "window", "until"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 0")
        for name in ("iterations", "top_k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.fusion <= 1:
            raise ConfigError(f"fusion={self.fusion}: a share in [0, 1]")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}: must be above 0")
