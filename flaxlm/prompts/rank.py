"""Which of several candidates a model finds likeliest behind a context.

| measure | of a candidate | |
|---|---|---|
| sum | log P(candidate, context) | Sanh et al. 2022 (T0) with an encoder |
| token | sum / tokens of the candidate | Brown et al. 2020, section 2.4 |
| character, byte | sum / its characters, or bytes in UTF-8 | |
| unconditional | sum - log P(candidate, "Answer:") | Brown et al. 2020, section 2.4 |
"""

from collections.abc import Callable, Sequence

import numpy as np

from flaxlm.decode.cache import has_encoder
from flaxlm.decode.prompts import Prompt, Reader
from flaxlm.likelihood import Likelihood, of_continuations
from flaxlm.prompts.contexts import Question

PRIOR = "Answer:"

Measure = Callable[[Likelihood, Likelihood, str], float]

# (behind the context, behind the prior, candidate) -> the higher the better
MEASURES: dict[str, Measure] = {
    "sum": lambda found, prior, text: found.nats,
    "token": lambda found, prior, text: found.nats / found.tokens,
    "character": lambda found, prior, text: found.nats / len(text),
    "byte": lambda found, prior, text: found.nats / len(text.encode()),
    "unconditional": lambda found, prior, text: found.nats - prior.nats,
}


def ranked(
    lm, questions: Sequence[Question], *, join: str, rows: int = 16
) -> list[dict[str, np.ndarray]]:
    """For each question {measure: [candidates]}.

    One stack reads a candidate behind context and `join`. With an encoder, the decoder says it with
    what the family puts around a text, its end included: what it was trained to say.

    Raises:
      ConfigError, DataError: see `flaxlm.likelihood.of_continuations`.
    """
    reader = Reader.of(lm.model, lm.vocab)

    def said(text: str) -> Prompt:
        return reader.ids(text).tolist() if has_encoder(lm.model) else join + text

    pairs = [
        (one.context, said(text)) for one in questions for text in one.asked.candidates
    ]  # fmt: skip
    texts = list(dict.fromkeys(text for one in questions for text in one.asked.candidates))
    found = iter(of_continuations(lm, pairs, rows=rows))
    alone = of_continuations(lm, [(PRIOR, said(text)) for text in texts], rows=rows)
    prior = dict(zip(texts, alone, strict=True))
    answers = []
    for one in questions:
        each = [(next(found), prior[text], text) for text in one.asked.candidates]
        answers.append(
            {name: np.array([of(*facts) for facts in each]) for name, of in MEASURES.items()}
        )
    return answers
