"""`Settings`: what to generate and how. Names and meanings are those of transformers' generation
configuration, so that settings found there can be used here.
"""

from dataclasses import dataclass

from flaxlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a text goes on. By default with the most likely token each time, up to 64.

    Attributes:
      max_new_tokens: the answer ends here at the latest.
      min_new_tokens: the end of text is not chosen before.
      sample: draw tokens instead of taking the most likely one.
      temperature: divides the logits before a draw.
      top_k: draw among the k most likely tokens; 0: all.
      top_p: draw among the most likely tokens that together have this probability (Holtzman et al.
        2020); 1.0: all.
      typical_p: draw among the tokens whose surprise is nearest to the expected one and that
        together have this probability (Meister et al. 2022); 1.0: all.
      repetition_penalty: the logits of tokens that stand in the text are divided by it where
        positive and multiplied where negative (Keskar et al. 2019); 1.0: none. The text is the
        decoder's: the prompt counts in a decoder-only model.
      no_repeat_ngram_size: no run of so many tokens stands twice in the text; 0: it may.
      num_beams: hypotheses of a beam search; 1: no search.
      length_penalty: hypotheses, of a search or drawn, are ranked by log-likelihood / tokens to
        this power.
      early_stopping: of a beam search: False ends when no running hypothesis seems able to beat
        the worst finished one, True when there are num_beams finished ones, "never" only when none
        can.
      candidates: draw so many answers and return the most likely one (sample-and-rank, Adiwardana
        et al. 2020, section 2.4).
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    candidates: int = 1

    def __post_init__(self):
        lowest = dict(max_new_tokens=1, min_new_tokens=0, top_k=0, no_repeat_ngram_size=0)
        lowest |= dict(num_beams=1, candidates=1)
        for name, low in lowest.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}={value!r}: an integer of at least {low}")
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a probability in (0, 1]")
        if not abs(self.length_penalty) < float("inf"):
            raise ConfigError(f"length_penalty={self.length_penalty}: must be finite")
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"early_stopping={self.early_stopping!r}: True, False or 'never'")
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens={self.min_new_tokens} is above "
                f"max_new_tokens={self.max_new_tokens}"
            )
        self._check_together()

    def _check_together(self):
        """Nothing is asked for that would have no effect."""
        for name in ("temperature", "top_k", "top_p", "typical_p", "candidates"):
            if not self.sample and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"{name}={getattr(self, name)} is of draws: it needs sample=True")
        if self.sample and self.num_beams > 1:
            raise ConfigError(f"num_beams={self.num_beams} with sample=True: choose one of the two")
        if self.num_beams == 1 and self.early_stopping is not False:
            raise ConfigError("early_stopping is of a beam search: it needs num_beams above 1")
        if self.num_beams == 1 and self.candidates == 1 and self.length_penalty != 1.0:
            raise ConfigError("length_penalty ranks answers: it needs num_beams or candidates")
