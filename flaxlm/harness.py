"""flaxlm's models in lm-evaluation-harness (`pip install 'flaxlm[harness]'`).

    python -m flaxlm.harness run --model flaxlm --model_args run=runs/gpt2 --tasks lambada_openai

takes the arguments of its own command, `lm_eval`; "flaxlm" is one more model there. From Python:
`lm_eval.simple_evaluate(FlaxLM(flaxlm.load("runs/gpt2")), tasks=[...])`.
"""

from collections.abc import Sequence

import lm_eval.api.instance
import lm_eval.api.model
from lm_eval.api.registry import register_model

import flaxlm
from flaxlm.decode import Settings
from flaxlm.errors import ConfigError
from flaxlm.likelihood import of_continuations, of_texts

_MOST = 256  # new tokens, where a task does not say


@register_model("flaxlm")
class FlaxLM(lm_eval.api.model.LM):
    """A `flaxlm.lm.LM` as the harness calls one."""

    def __init__(self, run: "flaxlm.lm.LM | str", batch_size: int | str = 16, **unused):
        """
        Args:
          run: the model, or the folder to load it from.
          batch_size: rows at a time.
          **unused: what the harness hands to every model (device, max_batch_size).
        """
        super().__init__()
        self.lm = flaxlm.load(run) if isinstance(run, str) else run
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size={batch_size}: expected a number of rows")
        self.rows = int(batch_size)

    def loglikelihood(
        self, requests: Sequence[lm_eval.api.instance.Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is what greedy search says) of (context, continuation)."""
        found = of_continuations(self.lm, [one.args for one in requests], rows=self.rows)
        return [(one.nats, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: Sequence[lm_eval.api.instance.Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length."""
        texts = [text for (text,) in (one.args for one in requests)]
        return [one.nats for one in of_texts(self.lm, texts, rows=self.rows)]

    def generate_until(
        self, requests: Sequence[lm_eval.api.instance.Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """What follows each context, up to the first of its "until"."""
        answers = [""] * len(requests)
        kinds: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(_settings(request.args[1]), []).append(number)
        for (settings, ends), numbers in kinds.items():
            prompts = [requests[number].args[0] for number in numbers]
            said = self.lm.generate(prompts, settings, rows=self.rows)
            for number, answer in zip(numbers, said, strict=True):
                answers[number] = _until(answer.text, ends)
        return answers


def _settings(wanted: dict) -> tuple[Settings, tuple[str, ...]]:
    """(settings, the texts that an answer ends before) of a task's generation_kwargs."""
    wanted = dict(wanted)
    ends = wanted.pop("until", ())
    most = wanted.pop("max_gen_toks", _MOST)
    most = wanted.pop("max_new_tokens", most)
    sample = bool(wanted.pop("do_sample", False)) and wanted.get("temperature") != 0
    if not sample:
        for name in ("temperature", "top_k", "top_p"):
            wanted.pop(name, None)
    try:
        settings = Settings(max_new_tokens=most, sample=sample, **wanted)
    except TypeError as error:
        raise ConfigError(f"generation_kwargs: {error}") from None
    return settings, (ends,) if isinstance(ends, str) else tuple(ends)


def _until(text: str, ends: Sequence[str]) -> str:
    return text[: min((text.index(end) for end in ends if end and end in text), default=None)]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
