"""A task answered through prompts: every template with every seed, and what comes of them.

Classes and choices are answered by the likelihood of their candidates (`flaxlm.prompts.rank`), each
measure beside the others; numbers and pieces of a context by what a model says, up to the end of
the line.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flaxlm.decode.prompts import Reader
from flaxlm.decode.settings import Settings
from flaxlm.objectives.templates import read_answer
from flaxlm.prompts.contexts import Question, drawn, question
from flaxlm.prompts.rank import ranked
from flaxlm.tasks.base import Example, Task

SAID = "said"  # the measure of answers that are no choice
_NEW = 32  # tokens of an answer


@dataclass(frozen=True)
class Scored:
    """What came of one template and one seed.

    Attributes:
      template: its name.
      seed: of the examples in the context.
      shots: how many of these there were, in the mean: as many as fit.
      metrics: {measure: {metric of the task: value}}.
    """

    template: str
    seed: int
    shots: float
    metrics: Mapping[str, Mapping[str, float]]


def scored(
    lm,
    task: Task,
    examples: Sequence[Example],
    templates: Mapping[str, Any],
    *,
    pool: Sequence[Example] = (),
    shots: int = 0,
    seeds: Sequence[int] = (0,),
    rows: int = 16,
) -> list[Scored]:
    """Answer examples through each template with each seed.

    Args:
      lm: a `flaxlm.lm.LM` that writes texts.
      templates: {name: `Template`, or a template of `flaxlm.prompts.promptsource`}.
      pool: labelled examples to put in the context.
      shots: how many of them.
      rows: candidates, or questions, at a time.

    Raises:
      ConfigError: a template is none for the task, or the model does not write.
      DataError: the pool is too small, examples have no labels, or a template and an example do not
        fit.
    """
    for template in templates.values():
        template.check(task.form, name=task.name)
    found = []
    for name, template in templates.items():
        asked = [template.ask(example, task.form) for example in examples]
        known = [template.ask(example, task.form) for example in pool]
        reader = Reader.of(lm.model, lm.vocab)
        for seed in seeds:
            before = drawn(known, asked, shots, seed=seed)
            questions = [
                question(reader, one, some, join=template.join, room=0 if one.candidates else _NEW)
                for one, some in zip(asked, before, strict=True)
            ]
            answers = _answers(lm, task, examples, questions, template.join, rows)
            metrics = {
                measure: {k: float(v) for k, v in task.metrics(some, examples).items()}
                for measure, some in answers.items()
            }
            fitting = statistics.fmean(one.shots for one in questions)
            found.append(Scored(name, seed, fitting, metrics))
    return found


def _answers(
    lm, task: Task, examples: Sequence[Example], questions: Sequence[Question], join: str, rows: int
) -> dict[str, list[Any]]:
    """{measure: the task's answers}."""
    if questions[0].asked.candidates:
        found = ranked(lm, questions, join=join, rows=rows)
        return {name: [int(one[name].argmax()) for one in found] for name in found[0]}
    settings = Settings(max_new_tokens=_NEW)
    said = lm.generate([one.context for one in questions], settings, rows=rows)
    return {
        SAID: [
            read_answer(answer.text.strip().partition("\n")[0], one.asked, example, task.form)
            for answer, one, example in zip(said, questions, examples, strict=True)
        ]
    }


def table(found: Sequence[Scored], *, main: str) -> str:
    """The task's main metric by measure, a row for each template and seed; of several rows also
    median, least and most.
    """
    measures = list(found[0].metrics)
    rows = [
        [one.template, str(one.seed), f"{one.shots:.1f}"]
        + [f"{one.metrics[measure][main]:.2f}" for measure in measures]
        for one in found
    ]
    if len(found) > 1:
        columns = [[one.metrics[measure][main] for one in found] for measure in measures]
        for name, of in (("median", statistics.median), ("least", min), ("most", max)):
            rows.append([name, "", "", *(f"{of(column):.2f}" for column in columns)])
    head = ["template", "seed", "shots", *measures]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            [
                f"{row[0]:{widths[0]}}",
                *(f"{x:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in [head, *rows]
    ]
    return "\n".join([f"{main}, in percent, by what decides", *lines])
