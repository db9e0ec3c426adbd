"""Templates as published, for the tasks of `flaxlm.tasks`.

t5     prefixes of the text-to-text tasks (Raffel et al. 2020, appendix D)
gpt3   forms of the few-shot evaluations (Brown et al. 2020, appendix G)
review the sentiment form of Zhao et al. 2021 ("Calibrate before use")
qa     any task as a question about a context (McCann et al. 2018, decaNLP)

`SUMMARY` and `TRANSLATION` are GPT-2's (Radford et al. 2019, sections 3.6 and 3.7), for texts that
are no task here: {text} in, the answer as it comes.
"""

from flaxlm.errors import ConfigError, nearest
from flaxlm.objectives.templates import FORMS, Template
from flaxlm.tasks.base import Task

SUMMARY = "{text}\nTL;DR:"
TRANSLATION = "{text} ="

# COPA, MultiRC, ReCoRD, WiC and WSC are not here: T5 writes their parts side by side, which an
# example here has joined.
T5: dict[str, Template] = {
    "glue/cola": Template("cola sentence: {text}"),
    "glue/sst2": Template("sst2 sentence: {text}"),
    "glue/mrpc": Template("mrpc sentence1: {text} sentence2: {pair}"),
    "glue/qqp": Template("qqp question1: {text} question2: {pair}"),
    "glue/stsb": Template("stsb sentence1: {text} sentence2: {pair}"),
    "glue/mnli": Template("mnli hypothesis: {pair} premise: {text}"),
    "glue/mnli_mismatched": Template("mnli hypothesis: {pair} premise: {text}"),
    "glue/ax": Template("mnli hypothesis: {pair} premise: {text}"),
    "glue/qnli": Template("qnli question: {text} sentence: {pair}"),
    "glue/rte": Template("rte sentence1: {text} sentence2: {pair}"),
    "glue/wnli": Template("wnli sentence1: {text} sentence2: {pair}"),
    "superglue/boolq": Template("boolq passage: {pair} question: {text}"),
    "superglue/cb": Template("cb hypothesis: {pair} premise: {text}"),
    "superglue/rte": Template("rte hypothesis: {pair} premise: {text}"),
    "superglue/axb": Template("rte sentence1: {text} sentence2: {pair}"),
    "superglue/axg": Template("rte hypothesis: {pair} premise: {text}"),
    "squad/v1": Template("question: {question} context: {context}"),
}

_THREE = "{text}\nquestion: {pair} True, False, or Neither?\nanswer:"
_TWO = "{text}\nquestion: {pair} True or False?\nanswer:"
_PASSAGE = "{context}\n\nQ: {question}\n\nA:"
_GOES_ON = Template("{text}")
_ASKED = Template("Question: {text}\nAnswer:")
_NOT = ("entailment", "not_entailment")

GPT3: dict[str, Template] = {
    "superglue/boolq": Template(
        "{pair}\nquestion: {text}?\nanswer:", choices=("no", "yes")
    ),
    "superglue/cb": Template(
        "{text}\nquestion: {pair}. true, false, or neither?\nanswer:",
        choices=("true", "false", "neither"),
    ),
    "superglue/copa": _GOES_ON,
    "choice/swag": _GOES_ON,
    "choice/commonsenseqa": _ASKED,
    "choice/commonsenseqa3": _ASKED,
    "squad/v1": Template(_PASSAGE),
    "squad/v2": Template(_PASSAGE),
}  # fmt: skip

_REVIEW = "Review: {text}\nSentiment:"
_SENTIMENT = ("glue/sst2", "sentences/polarity", "korean/nsmc")

# By form: what can be asked of any task.
_QA = {
    "Classes": "question: {names}? context: {text}",
    "Pairs": "question: {pair} {names}? context: {text}",
    "Score": "question: how much, from {low} to {high}? context: {text}",
    "Scores": "question: how alike is {pair}, from {low} to {high}? context: {text}",
    "Choices": "question: {names}? context: {text}",
    "Spans": "question: {question} context: {context}",
}


def templates(task: Task) -> dict[str, Template]:
    """The templates of a task by name, those made for it first.

    Raises:
      ConfigError: its form has none.
    """
    found = {}
    if task.name in T5:
        found["t5"] = T5[task.name]
    if (published := _gpt3(task)) is not None:
        found["gpt3"] = published
    if task.name in _SENTIMENT:
        found["review"] = Template(_REVIEW, choices=("Negative", "Positive"))
    kind = type(task.form).__name__
    if kind not in FORMS:
        raise ConfigError(
            f"task:{task.name} is of the form {kind}, which has no text to answer with; there are "
            f"templates for {', '.join(FORMS)}"
        )
    if getattr(task.form, "pair", False):
        kind = {"Classes": "Pairs", "Score": "Scores"}[kind]
    return {**found, "qa": Template(_QA[kind])}


def find(task: Task, name: str) -> Template:
    """One of `templates`.

    Raises:
      ConfigError: there is none of that name.
    """
    known = templates(task)
    if name not in known:
        raise ConfigError(
            f"task:{task.name} has no template {name!r}; {nearest(name, known)} (a file of "
            "promptsource ends in .yaml)"
        )
    return known[name]


def _gpt3(task: Task) -> Template | None:
    """Named for the task, or for what its classes are."""
    if task.name in GPT3:
        return GPT3[task.name]
    if type(task.form).__name__ == "Choices":
        return _GOES_ON
    labels = getattr(task.form, "labels", ()) if getattr(task.form, "pair", False) else ()
    if set(labels) == {"entailment", "neutral", "contradiction"}:
        words = {"entailment": "True", "neutral": "Neither", "contradiction": "False"}
        return Template(_THREE, choices=tuple(words[label] for label in labels))
    if labels in (_NOT, _NOT[::-1]):
        return Template(_TWO, choices=("True", "False") if labels == _NOT else ("False", "True"))
    return None
