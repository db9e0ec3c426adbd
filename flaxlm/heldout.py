"""What a run reports on text it never trained on: losses, the entropy they are to beat, examples
to read.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxlm.batch import Features
from flaxlm.data.examples import has_answers, measure_name
from flaxlm.optim import averaged
from flaxlm.rundir import write_json
from flaxlm.sharding import axis_size
from flaxlm.step import Applied


def evaluate(
    eval_step,
    objective,
    state,
    batches: Iterable[Mapping[str, jax.Array]],
    *,
    answers: list | None = None,
) -> dict[str, float]:
    """The objective's loss and terms over all batches: sums are divided once, at the end.

    Args:
      eval_step: of `step.make_eval_step`, jitted.
      objective: whose terms these are.
      state: the training state.
      batches: global arrays.
      answers: gets what the objective keeps of the rows of each batch, {name: [B, ...]}.
    """
    sums: dict[str, list[float]] = {}
    for batch in batches:
        found = eval_step(state, batch)
        if "answers" in found:
            kept = jax.device_get(found.pop("answers"))
            if answers is not None:
                answers.append(kept)
        for name, pair in found.items():
            total = sums.setdefault(name, [0.0, 0.0])
            for i, value in enumerate(pair):
                total[i] += float(value)
    means = {name: value / max(weight, 1.0) for name, (value, weight) in sums.items()}
    if not means:  # nothing is held out
        return {}
    return {
        "loss": sum(objective.terms[name].scale * mean for name, mean in means.items()),
        **means,
    }


class Evaluation:
    """The evaluation of a run: `evaluate` on its held-out batches, with a yardstick beside it.

    "gain" is how many nats the loss that `objective.measured` names lies under the unigram entropy
    of its targets. It can be compared between objectives as far as their inputs can; with several
    processes, none of which has all targets, it is left out.

    Of tasks it also has their own metrics, of all examples: every process gets all answers.
    """

    def __init__(self, eval_step, objective, feed, held_out):
        """`feed` makes global arrays of the host batches `held_out`; else as `evaluate`."""
        self._step, self._objective, self._feed = eval_step, objective, feed
        self._held_out = held_out

    @functools.cached_property
    def entropy(self) -> float | None:
        """See `unigram_entropy`."""
        if jax.process_count() > 1 or not len(self._held_out):
            return None
        _, targets, weights = self._objective.measured
        return unigram_entropy(self._held_out, targets=targets, weights=weights)

    def __call__(self, state, *, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """`check` is called before every batch: it raises where the rest is to be left."""

        def fed():
            for features in self._held_out:
                check()
                yield self._feed(features)

        batches, answers = fed(), []
        found = evaluate(self._step, self._objective, state, batches, answers=answers)
        if answers:
            found |= measures(predictions(self._held_out, answers))
        term = self._objective.measured[0]
        if term not in found or self.entropy is None:
            return found
        return {**found, "gain": self.entropy - found[term]}


def predictions(held_out, answers: Sequence[Mapping[str, np.ndarray]]) -> list[tuple[Any, list]]:
    """(`flaxlm.data.examples.ExampleWindows`, its task's answers, one per example) of each set of
    examples that is held out.

    Args:
      held_out: `flaxlm.data.batches.EvalBatches` of all rows.
      answers: what was kept of the rows of each global batch.
    """
    places = [held_out.places(number) for number in range(len(held_out))]
    component, place = (np.concatenate(parts) for parts in zip(*places, strict=True))
    joined = {name: np.concatenate([some[name] for some in answers]) for name in answers[0]}
    found = []
    for number, windows in enumerate(held_out.windows):
        here = (component == number) & (place >= 0)
        assert here.sum() == len(windows), "an evaluation left rows out"
        order = np.flatnonzero(here)[np.argsort(place[here])]
        found.append((windows, windows.predictions({n: x[order] for n, x in joined.items()})))
    return found


def measures(predicted: Sequence[tuple[Any, list]]) -> dict[str, float]:
    """The metrics of the tasks of `predictions`, by the names that metrics.jsonl has for them."""
    return {
        measure_name(windows.task, name, alone=len(predicted) == 1): float(value)
        for windows, made in predicted
        if has_answers(windows.examples)
        for name, value in windows.task.metrics(made, windows.examples).items()
    }


def unigram_entropy(
    batches: Iterable[Features], *, targets: str = "targets", weights: str = "text_weights"
) -> float | None:
    """Entropy in nats of the distribution of the ids `targets` where `weights` is positive; None
    without such features.

    It is the loss of the best model that ignores its input, measured on the held-out targets
    themselves: the smaller the sample, the lower it is, so a loss below it is no artefact.
    """
    counts = np.zeros(0, np.int64)
    for features in batches:
        if weights not in features:
            return None
        found = np.bincount(features[targets][features[weights] > 0])
        counts = np.pad(counts, (0, max(len(found) - len(counts), 0)))
        counts[: len(found)] += found
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum())


def examples(model, objective, state, features: Features, vocab, *, count: int = 5) -> str:
    """`count` held-out rows as text: input, true target, predicted target. "" if the objective
    does not predict.
    """
    shards = axis_size("batch")
    computed = {name: value[: -(-count // shards) * shards] for name, value in features.items()}
    rows = {name: value[:count] for name, value in computed.items()}

    def predict(state, batch):
        return objective.predict(Applied(model, averaged(state.opt, state.params)), batch)

    predicted = jax.jit(predict)(state, computed)
    if predicted is None:
        return ""
    predicted = np.asarray(predicted)[:count]
    predicted = np.where(
        predicted < vocab.size, predicted, vocab.unk
    )  # the model may have rows to spare
    guessed = objective.guessed(rows, predicted.astype(np.int32), vocab)
    lines = []
    pairs = zip(objective.show(rows, vocab), objective.show(guessed, vocab), strict=True)
    for number, (true, guess) in enumerate(pairs, 1):
        lines += [
            f"held-out example {number}",
            f"  input      {true.input}",
            f"  true       {true.target}",
            f"  predicted  {guess.target}",
        ]
    return "\n".join(lines)


def report(directory, model, objective, state, found: Mapping[str, float], held_out, vocab) -> str:
    """The final evaluation and a few predictions as text; also written to evaluation.json and
    samples.txt.

    With several processes the parts that need every row in one place (entropy, examples) are left
    out.

    Args:
      directory: the run directory.
      found: of an `Evaluation`.
      held_out: batches of host features.
    """
    step, alone = int(state.step), jax.process_count() == 1
    lines = [f"held-out after step {step}: " + " ".join(f"{k} {v:.4f}" for k, v in found.items())]
    if "gain" in found:
        loss, gain = found[objective.measured[0]], found["gain"]
        lines.append(
            f"held-out text tokens: loss {loss:.3f} nat, unigram entropy {loss + gain:.3f} nat: "
            f"{abs(gain):.3f} nat {'under' if gain >= 0 else 'over'} it"
        )
        found = {**found, "unigram_entropy": loss + gain}
    samples = (
        examples(model, objective, state, held_out[0], vocab) if alone and len(held_out) else ""
    )
    if jax.process_index() == 0:
        write_json(directory / "evaluation.json", {"step": step, **found})
        if samples:
            (directory / "samples.txt").write_text(samples + "\n", encoding="utf-8")
    return "\n".join([*lines, samples]).rstrip()
