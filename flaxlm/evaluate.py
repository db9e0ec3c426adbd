"""`python -m flaxlm.evaluate --run RUN --task NAME[@FOLDER]`: a fine-tuned run on a task.

Writes into --out DIR (RUN/evaluate/NAME-SPLIT if it is not given)

  result.json   metrics, what was evaluated, of which step
  report.txt    a table of the metrics, the confusion of the classes, examples that went wrong
  answers       the publisher's official result file

With --text FILE instead of --task: perplexity and bits per byte of a language model on a text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flaxlm import flags, host
from flaxlm.arguments import HELP, Flag, help_page, parse_argv
from flaxlm.errors import ConfigError, DataError, MissingInput, command
from flaxlm.show import cells

_FLAGS = {
    "--run": Flag("a run directory that a task was learned in", "RUN"),
    "--task": Flag("the task, glue/sst2 or sentences/polarity@FOLDER", "NAME"),
    "--split": Flag("of the task, or a slice of one; validation if it is not given", "NAME"),
    "--text": Flag("instead of a task: a file for a language model to predict", "FILE"),
    "--window": Flag("of the text, tokens; the model's positions if not given", "N"),
    "--stride": Flag("tokens by which windows move on; the window if not given", "N"),
    "--out": Flag("the folder to write into", "DIR"),
    "--help": HELP,
}
_ERRORS = 10  # examples shown
_CHARACTERS = 400  # of a text
_CONFUSED = 30  # most classes of a table


@command
def main(argv: list[str]) -> int | None:
    """The command line. Returns the exit code."""
    arguments = parse_argv(argv, _FLAGS)
    if arguments["--help"]:
        print(help_page("flaxlm.evaluate", __doc__.partition("\n\n")[2].strip(), _FLAGS))
        return None
    if arguments["--text"]:
        from flaxlm.perplexity import from_arguments

        print(from_arguments(arguments))
        return None
    for flag in ("--run", "--task"):
        if not arguments[flag]:
            raise ConfigError(f"{flag} is missing: --run RUN --task NAME[@FOLDER]")
    for flag in ("--window", "--stride"):
        if arguments[flag]:
            raise ConfigError(f"{flag} is of --text")
    flags.use()
    split = arguments["--split"] or "validation"
    run, task = Path(arguments["--run"]), arguments["--task"]
    from flaxlm.results import folder_of

    name = f"{task.partition('@')[0]}-{split}"
    folder = Path(arguments["--out"] or folder_of(run, "evaluate", name))
    print(evaluate(run, task, split, folder))
    return None


def evaluate(run: Path, task: str, split: str, folder: Path) -> str:
    """Answer a split with the best checkpoint that can be read of a run, and write what came of it.

    Returns:
      The report.

    Raises:
      ConfigError: the run learned no task, or one of another form.
      MissingInput, DataError, StorageError: the run or the examples cannot be read.
    """
    from flaxlm.data.examples import TaskExamples, has_answers, task_of
    from flaxlm.data.spec import Source
    from flaxlm.results import write_result
    from flaxlm.tasks.measures import indices
    from flaxlm.weights import read_weights

    declared = Declared.of(run)
    known, place = task_of(Source(f"task:{task}", split=split))
    declared.objective.check(known.form, name=known.name)
    found = read_weights(run, best=declared.best)
    some = TaskExamples(known, known.read(split, place))
    predicted = predict(declared, found, some)
    labelled = has_answers(some.examples)
    metrics = known.metrics(predicted, some.examples) if labelled else {}
    baseline = _baseline(declared, known, some.examples) if labelled else None
    classes = type(known.form).__name__ in ("Classes", "Choices")
    shown = indices(predicted) if classes else predicted
    report = "\n\n".join(
        part
        for part in (
            f"{known.name} {split}: {len(predicted):,} examples, {run} at step {found.step}",
            _table(metrics, main=known.main, baseline=baseline),
            _confusion(known.form, some.examples, shown) if labelled else "",
            _errors(known.form, some.examples, shown) if labelled else "",
        )
        if part
    )
    result = {
        "task": known.name, "split": split, "examples": len(predicted), "run": str(run),
        "step": found.step, "main": known.main,
        "metrics": {name: float(value) for name, value in metrics.items()}, "baseline": baseline,
    }  # fmt: skip
    written = write_result(folder, result, report)
    known.write(predicted, some.examples, str(folder / "answers"))
    return written


@dataclass(frozen=True)
class Declared:
    """How a run learned its task.

    Attributes:
      objective: `flaxlm.objectives.examples.ExampleObjective`.
      length, batch: of its rows.
      best: `Run.keep_best`.
      sources: (uri, split) of what it learned from.
    """

    objective: Any
    length: int
    batch: int
    best: str
    sources: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, run: Path) -> "Declared":
        """Read from its experiment.json.

        Raises:
          MissingInput: there is none.
          ConfigError: the run learned no task.
          DataError: the file is damaged.
        """
        from flaxlm.rebuild import rebuild_objective

        path = run / "experiment.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            data, best = value["data"], value["run"]["keep_best"]
            sizes = [data["packing"], data["length"], data["batch"]]
            described = value["objective"]
            sources = tuple((source["uri"], source["split"]) for source in data["sources"])
        except OSError as error:
            raise MissingInput(f"{path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} does not describe a run ({error})") from None
        if sizes[0] != "examples":
            raise ConfigError(
                f"{run} learned from text (data.packing={sizes[0]}); a task is answered by a run "
                "that learned one, with data.packing=examples"
            )
        objective = rebuild_objective(described, where=f"{path}: objective")
        return cls(objective, *sizes[1:], best, sources)


def predict(declared, found, some) -> list[Any]:
    """The answers of a model to a set of examples, without dropout.

    Args:
      declared: how the run learned it.
      found: `flaxlm.weights.Weights` of the run.
      some: `flaxlm.data.examples.TaskExamples`.
    """
    import jax
    import jax.numpy as jnp

    from flaxlm.data.batches import EvalBatches
    from flaxlm.data.examples import PACKING
    from flaxlm.data.spec import Data, Source
    from flaxlm.heldout import predictions
    from flaxlm.nn.compute import Compute
    from flaxlm.step import Applied

    objective = declared.objective
    data = Data(
        sources=(Source(f"task:{some.task.name}"),), batch=declared.batch, length=declared.length,
        packing=PACKING,
    )  # fmt: skip
    batches = EvalBatches([(some, 1.0)], objective, found.vocab, data=data, count=0)
    model = found.model.clone(compute=Compute(), parent=None)

    @jax.jit
    def answer(params, batch):
        return objective.answers(objective.forward(Applied(model, params), batch, None), batch)

    params = jax.tree.map(jnp.asarray, found.params)
    answers = [jax.device_get(answer(params, features)) for features in batches]
    return predictions(batches, answers)[0][1]


def _baseline(declared: Declared, task, examples: Sequence) -> float | None:
    """The main metric of the answer that is commonest in what the run learned from; None where that
    was another task, or cannot be read any more.
    """
    from flaxlm.data.examples import task_of
    from flaxlm.data.spec import Source
    from flaxlm.tasks.baselines import majority

    for uri, split in declared.sources:
        learned, place = task_of(Source(uri, split=split))
        if learned.name == task.name:
            try:
                train = task.read(split, place)
            except MissingInput:
                return None
            return float(task.metrics(majority(task, train, examples), examples)[task.main])
    return None


def _table(metrics: Mapping[str, float], *, main: str, baseline: float | None) -> str:
    width = max(map(len, metrics), default=0)
    decides = "  <- decides"
    if baseline is not None:
        decides += f"; {baseline:.4f} by the commonest answer in training"
    return "\n".join(
        f"  {name:{width}}  {value:10.4f}" + (decides if name == main else "")
        for name, value in metrics.items()
    )


def _confusion(form, examples: Sequence, predicted: Sequence) -> str:
    """How often each class was taken for each other; "" of other forms and of very many classes."""
    labels = getattr(form, "labels", ())
    if type(form).__name__ != "Classes" or len(labels) > _CONFUSED:
        return ""
    counts = np.zeros((len(labels), len(labels)), int)
    for example, answer in zip(examples, predicted, strict=True):
        if example["label"] is not None:
            counts[example["label"], answer] += 1
    width = max(cells(str(x)) for x in (*labels, counts.max()))
    pad = {label: " " * (width - cells(label)) for label in labels}
    rows = [" " * (width + 2) + "  ".join(pad[label] + label for label in labels)]
    rows += [
        "  ".join([label + pad[label], *(f"{count:>{width}}" for count in row)])
        for label, row in zip(labels, counts.tolist(), strict=True)
    ]
    return "right (down), answered (across)\n" + "\n".join(f"  {row}" for row in rows)


def _errors(form, examples: Sequence, predicted: Sequence) -> str:
    """The first examples with another answer than the right one; numbers: the farthest off."""
    kind = type(form).__name__
    wrong = []
    for example, answer in zip(examples, predicted, strict=True):
        right, given = _named_answers(kind, form, example, answer)
        if right is not None and right != given:
            far = abs(example["label"] - answer) if kind == "Score" else 0.0
            wrong.append((-far, len(wrong), example, right, given))
    lines = [f"{len(wrong):,} of {len(examples):,} answered otherwise than labelled"]
    for _, _, example, right, given in sorted(wrong, key=lambda some: some[:2])[:_ERRORS]:
        lines += [f"  {_shown(example)}", f"    right     {right}", f"    answered  {given}"]
    return "\n".join(lines)


def _named_answers(kind: str, form, example, answer) -> tuple[Any, Any]:
    """(right, given) answer as a person reads them; (None, ...) without a label."""
    if kind == "Spans":
        texts = [some["text"] for some in example["answers"]] or [""]
        return (answer["text"] if answer["text"] in texts else texts[0]), answer["text"]
    if kind == "Tags":
        if example["tags"] is None:
            return None, None
        return tuple(
            " ".join(f"{w}/{form.labels[t]}" for w, t in zip(example["words"], tags, strict=True)
                     if form.labels[t] != "O") or "nothing"
            for tags in (example["tags"], answer)
        )  # fmt: skip
    if kind == "Arcs":
        return tuple(
            arcs and " ".join(f"{word}<-{head}:{form.labels[relation]}"
                              for word, head, relation in zip(example["words"], *arcs, strict=True))
            for arcs in (example["heads"] and (example["heads"], example["relations"]), answer)
        )  # fmt: skip
    label = example["label"]
    if label is None or kind == "Score":
        return label, answer
    names = form.labels if kind == "Classes" else example["endings"]
    return names[label], names[answer]


def _shown(example: Mapping) -> str:
    parts = [example[k] for k in ("question", "context", "text", "pair") if example.get(k)]
    text = " | ".join(parts) if parts else " ".join(example["words"])
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 3] + "..."


if __name__ == "__main__":
    host.use_huge_pages()
    host.finish(main)
