"""diagnostics/: what is to be known about a step that was left out or stood out.

    diagnostics/step-12-batch-11.json            of process 0
    diagnostics/step-12-batch-11-process-1.json  of another, about its own rows

Which part of the loss it was, which rows were the worst, where they come from and how they read,
and the norm of every gradient and parameter, by layer. Numbers that are not finite are the strings
"nan", "inf" and "-inf", as in metrics.jsonl.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxlm.data.files import write_whole
from flaxlm.errors import StorageError
from flaxlm.guard import norms

FOLDER = "diagnostics"

_MOST = 50  # files of one start: a run that spikes for weeks does not fill the disk
_WORST = 4  # rows shown with their text
_CHARACTERS = 2000  # of a text


class Diagnostics:
    """Writes the files.

    Args:
      directory: the run directory.
      plan: of the run.
      batches: the `divergence.Course` of the run.
    """

    def __init__(self, directory: Path, *, plan, batches, vocab):
        self._folder = directory / FOLDER
        self._batches, self._objective, self._vocab = batches, plan.objective, vocab
        everywhere = plan.layout.sharding(())
        self._norms = jax.jit(partial(norms, stacked=plan.stacked), out_shardings=everywhere)
        self._count = 0

    def __call__(self, event: str, step: int, metrics: Mapping[str, Any], state) -> str:
        """Write the file of a step. Collective, since parameters may be anywhere.

        Args:
          event: what happened.
          step: counted from 1.
          metrics: of `step.make_train_step`.
          state: as it is now; the steps that were dispatched since may have changed it.

        Returns:
          The file's name in the run directory, or why there is none.
        """
        self._count += 1
        if self._count > _MOST:
            return f"no file, this start has written {_MOST}"
        parameters = _numbers(jax.device_get(self._norms(state.params)))
        process = jax.process_index()
        batch = self._batches.number(step - 1)  # a step that is made again has another
        name = f"step-{step}-batch-{batch}" + (f"-process-{process}" if process else "") + ".json"
        evidence = jax.device_get(metrics["evidence"])
        scalars = {name: float(x) for name, x in metrics.items() if name != "evidence"}
        terms = {name: scalars[name] for name in self._objective.terms}
        _, _, *deviations = evidence["verdict"].tolist()
        found = {
            "step": step,
            "batch": batch,
            "event": event,
            "loss": scalars["loss"],
            "terms": terms,
            "not_finite": [name for name, value in terms.items() if not math.isfinite(value)],
            "grad_norm": scalars["grad_norm"],
            "deviations": dict(zip(("loss", "grad_norm"), deviations, strict=True)),
            "skipped": scalars["skipped"],
            **self._batch(step, evidence["rows"]),
            "gradients": evidence["gradients"],
            "parameters": {"after_step": int(state.step), "norms": parameters},
        }
        try:
            self._folder.mkdir(exist_ok=True)
            text = json.dumps(_numbers(found), indent=1, allow_nan=False, ensure_ascii=False)
            write_whole(self._folder / name, (text + "\n").encode(errors="backslashreplace"))
        except (OSError, StorageError) as error:  # a full disk must not end a run that is well
            return f"no file, {error}"
        return f"{FOLDER}/{name}"

    def _batch(self, step: int, sums: Mapping[str, np.ndarray]) -> dict:
        """The rows of the batch that this process made, the worst of them with their text."""
        numbers = self._batches.rows_of(step - 1)
        features, origins = self._batches[step - 1], self._batches.origins(step - 1)
        place = self._batches.place_of(step - 1)
        losses = {}
        for name, term in self._objective.terms.items():
            weights = features[term.weights]
            weights = weights.sum(tuple(range(1, weights.ndim)))
            losses[name] = sums[name][place] / np.maximum(weights, 1)
        scales = {name: term.scale for name, term in self._objective.terms.items()}
        joint = sum(scales[name] * values for name, values in losses.items())
        order = np.argsort(-np.where(np.isfinite(joint), joint, np.inf), kind="stable")[:_WORST]
        shown = self._objective.show({n: x[order] for n, x in features.items()}, self._vocab)
        return {
            "rows": {
                str(number): f"{source}, document {', '.join(map(str, documents))}"
                for number, (source, documents) in zip(numbers, origins, strict=True)
            },
            "worst": [
                {
                    "row": int(numbers[row]),
                    "losses": {name: values[row] for name, values in losses.items()},
                    "input": example.input[:_CHARACTERS],
                    "target": example.target[:_CHARACTERS],
                }
                for row, example in zip(order.tolist(), shown, strict=True)
            ],
        }


def _numbers(value):
    """What JSON can hold of nested dicts, lists, arrays and numbers."""
    if isinstance(value, Mapping):
        return {name: _numbers(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_numbers(x) for x in value]
    if isinstance(value, np.ndarray | np.generic):
        return _numbers(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
