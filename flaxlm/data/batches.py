"""`Batches[step]`: the features of one training step, as a pure function of (corpus, objective,
seed, step).

A run numbers its rows from its first step on: row `step * batch + i` is the i-th of its step, as
long as no phase changes the batch. The number alone decides which component of the mixture the row
comes from, which window of it, and how it is corrupted, so a host makes the rows it needs and no
other, any number of hosts makes the same global batch, and the state of the input pipeline is the
step.

Windows of each length have epochs of their own: a phase of another length begins them anew, a phase
of a length that was there before goes on with its epochs. Under "continue" the place of a row in
the batch decides, and how many tokens were passed before the step (`flaxlm.data.order.Streams`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from flaxlm.batch import Features, check_features, check_range
from flaxlm.data.encoded import MixedExampleRows
from flaxlm.data.order import Mixture, Streams, apportion, mixed, permute
from flaxlm.data.pack import Counts
from flaxlm.data.pieces import Documents, MixedRows, PieceRows
from flaxlm.data.random import RowRandom
from flaxlm.data.spec import Data, Phase
from flaxlm.data.stages import Share, Stage, share_of, stages_of, windows_of
from flaxlm.errors import ConfigError

# Evaluation sees the same rows, corrupted the same way, in every run: its seed is nobody's choice.
EVALUATION_SEED = 0x5EED


class Batches:
    """The training batches of a run, in random access and without end.

    Attributes:
      counts: per component, what became of its documents, in rows of the first phase's length.
      fractions: per component, its share of the rows as used: exact over every
        `flaxlm.data.order.BLOCK` rows, or in every batch under "continue".
      fingerprint: changes with anything that changes a batch; a resumed run must find its own.
    """

    counts: list[Counts]
    fractions: list[float]
    fingerprint: str

    def __init__(
        self,
        components: Sequence[tuple[Documents, float]],
        objective,
        vocab,
        *,
        data: Data,
        seed: int,
        rows: Share = slice(None),
        tables: Mapping[str, int] | None = None,
    ):
        """
        Args:
          components: (prepared corpus, weight) of each of data.sources; each goes through epochs of
            its own.
          objective: see `flaxlm.objectives.base.Objective`.
          vocab: of the corpora.
          data: batch, length, packing and phases.
          seed: of order and corruption.
          rows: which rows of the global batch this host makes.
          tables: see `flaxlm.batch.check_features`.

        Raises:
          DataError: if a component does not make one row, or not two where rows need partners.
          ConfigError: if a weight is not above 0; fewer rows in a batch than sources to continue.
        """
        names = [source.uri for source in data.sources]
        weights = [weight for _, weight in components]
        self._features = partial(
            _features, objective=objective, vocab=vocab, seed=seed, tables=tables
        )
        self._objective, self._names = objective, names
        self._stages = stages_of(components, names, objective, vocab, data, seed, rows)
        self._mixture = Mixture(weights, seed, names=names)
        self.counts = [windows.counts for windows in self._stages[0].windows]
        self.fractions = self._mixture.fractions
        self._streams = None
        if data.packing == "continue":
            if len(weights) > data.batch:
                raise ConfigError(
                    f"data.packing=continue gives every row of the batch to one source: "
                    f"data.batch={data.batch} is less than {len(weights)} sources"
                )
            quota = apportion(weights, data.batch, names=names)
            self._streams = Streams([counts.tokens for counts in self.counts], quota, seed=seed)
            self.fractions = [float(share) for share in quota / data.batch]
        self.fingerprint = _digest(
            {
                "corpora": [corpus.fingerprint for corpus, _ in components],
                "quota": self._mixture.quota.tolist(),
                "objective": repr(objective),
                "batch": data.batch,
                "length": data.length,
                "packing": data.packing,
                "phases": [[p.start, p.length, p.batch] for p in data.phases],
                "seed": seed,
            }
        )

    def begins(self, step: int) -> bool:
        """Whether a phase begins with `step`."""
        return any(stage.phase.start == step for stage in self._stages)

    def _stage(self, step: int) -> Stage:
        return next(stage for stage in reversed(self._stages) if stage.phase.start <= step)

    def place_of(self, step: int) -> np.ndarray:
        """Places in the global batch of the rows that this host makes for `step`."""
        return self._stage(step).place

    def rows_of(self, step: int) -> np.ndarray:
        """Global numbers of the rows that this host makes for `step`."""
        stage = self._stage(step)
        return stage.rows + (int(step) - stage.phase.start) * stage.phase.batch + stage.place

    def __getitem__(self, step: int) -> Features:
        """Features of this host's rows of `step`, checked against `flaxlm.batch.FEATURES`."""
        stage, *places = self._places(step)
        return self._features(stage.windows, *places)

    def origins(self, step: int) -> list[tuple[str, list[int]]]:
        """(uri of the source, ids of its documents) of each row that this host makes for `step`."""
        stage, component, place, shift, _, number = self._places(step)
        found: list[tuple[str, list[int]]] = [("", [])] * len(number)
        for c in np.unique(component).tolist():
            at = np.flatnonzero(component == c)
            rows = stage.windows[c].rows(place[at], shift[at], index=number[at], pad=0)
            for row, documents in zip(at.tolist(), rows.documents, strict=True):
                found[row] = (self._names[c], documents.tolist())
        return found

    def _places(self, step: int) -> tuple:
        """(stage, [B] component, place among its windows, shift of them, epoch, number) of the rows
        that this host makes for `step`.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        stage, number = self._stage(step), self.rows_of(step)
        if self._streams is None:
            component, place, shift, epoch = self._sampled(stage, number)
        else:
            passed = stage.passed + (step - stage.phase.start) * self._advance(stage.phase)
            component, shift = self._streams(stage.place, passed=passed)
            place = np.zeros_like(shift)  # the first window of a stream that begins there
            epoch = np.zeros_like(shift)
        return stage, component, place, shift, epoch, number

    def _sampled(self, stage: Stage, number: np.ndarray) -> tuple[np.ndarray, ...]:
        """(component, place among its windows, shift of them, epoch) of rows in shuffled epochs."""
        component, sample = self._mixture(number - stage.rows + stage.samples)
        place, shift, epoch = (np.empty_like(number) for _ in range(3))
        for c in np.unique(component).tolist():
            at = component == c
            epoch[at], place[at] = stage.epochs[c](sample[at])
            shift[at] = stage.epochs[c].shift(epoch[at], stage.windows[c].width)
        return component, place, shift, epoch

    def _advance(self, phase: Phase) -> int:
        return self._objective.advance(phase.length)

    def used(self, steps: int) -> list[float]:
        """Share of each component in all rows of the first `steps` steps, at least one."""
        if self._streams is not None:
            return self.fractions
        found = np.zeros(len(self.fractions), np.int64)
        for stage, end in self._until(steps):
            rows = max(min(end, steps) - stage.phase.start, 0) * stage.phase.batch
            found += self._mixture.used(stage.samples + rows) - self._mixture.used(stage.samples)
        return (found / found.sum()).tolist()

    def _until(self, steps: int) -> Iterable[tuple[Stage, int]]:
        """The phases, each with the step at which the next one begins; `steps` after the last."""
        ends = [stage.phase.start for stage in self._stages[1:]] + [steps]
        return zip(self._stages, ends, strict=True)

    def passes(self, steps: int) -> list[float]:
        """How many times the first `steps` steps go through each component."""
        found = np.zeros(len(self.fractions))
        for stage, end in self._until(steps):
            rows = max(min(end, steps) - stage.phase.start, 0) * stage.phase.batch
            if self._streams is None:
                epoch = [len(windows) for windows in stage.windows]
            else:
                epoch = [w.counts.tokens / self._advance(stage.phase) for w in stage.windows]
            found += rows * np.array(self.fractions) / epoch
        return found.tolist()


class EvalBatches(Sequence):
    """A fixed set of held-out rows: the same in every run, whatever its seed.

    Rows come from all components in proportion to their rows, drawn without replacement. A last
    batch that is not full ends in rows of padding, which weigh nothing: no row counts twice.

    Their length and batch are those of the last phase from the first step on, so that the numbers
    of a run can be compared with one another. Under "continue" they are windows in no order.
    """

    def __init__(
        self,
        components: Sequence[tuple[Documents, float]],
        objective,
        vocab,
        *,
        data: Data,
        count: int,
        rows: Share = slice(None),
        tables: Mapping[str, int] | None = None,
    ):
        """At most `count` batches (0: all there are), fewer where the corpora have fewer rows; else
        as `Batches`.

        `components` belong to data.held_out, or to data.sources where that is (); their weights
        play no part. Without any there are no batches.
        """
        names = [source.uri + " (held out)" for source in data.held_out or data.sources]
        phase = data.course[-1]
        self._windows = (
            windows_of(components, names, objective, vocab, data.packing, phase.length)
            if components
            else []
        )
        self._ends = np.cumsum([0, *(len(windows) for windows in self._windows)])[1:]
        every = int(self._ends[-1]) if components else 0
        self._rows = min(every, count * phase.batch) if count else every
        self._features = partial(
            _features, objective=objective, vocab=vocab, seed=EVALUATION_SEED, tables=tables
        )
        self._batch = phase.batch
        self._place = share_of(rows, phase.batch)

    def __len__(self) -> int:
        return -(-self._rows // self._batch)

    def __getitem__(self, number: int) -> Features:
        if not 0 <= number < len(self):
            raise IndexError(f"evaluation batch {number} of {len(self)}")
        component, index, row = self._at(number, self._place)
        none = np.zeros_like(index)
        return self._features(self._windows, component, index, none, none, row)

    @property
    def windows(self) -> list:
        """Of each component."""
        return list(self._windows)

    def places(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """([B] component, [B] place among its windows, -1 for padding) of all rows of the global
        batch `number`.
        """
        return self._at(number, np.arange(self._batch))[:2]

    def _at(self, number: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(component, place among its windows or -1, number) of rows of a batch."""
        number = number * self._batch + place
        real = number < self._rows
        row = permute(np.where(real, number, 0), int(self._ends[-1]), mixed(EVALUATION_SEED))
        component = np.searchsorted(self._ends, row, side="right")
        before = np.concatenate([[0], self._ends])[component]
        return component, np.where(real, row - before, -1), number


def _features(
    windows, component, place, shift, epoch, index, *, objective, vocab, seed: int, tables
) -> Features:
    """The features of the rows at these places, each with its partners."""
    rows = _read(windows, component, place, shift, index, vocab)
    before = np.cumsum([0, *map(len, windows)])
    rows.window, rows.epoch = before[component] + place, epoch
    partners = []
    for number in range(objective.partners):
        other = np.empty_like(place)
        for c in np.unique(component).tolist():
            at = component == c
            other[at] = windows[c].others(place[at], seed, 5, number, index[at])
        partners.append(_read(windows, component, other, shift, index, vocab))
    rows.partners = tuple(partners)
    features = objective.prepare(rows, RowRandom(seed, rows.index), vocab)
    check_features(features, vocab_size=vocab.size, rows=rows.index, tables=tables)
    return features


def _read(windows, component, place, shift, index, vocab):
    """The rows of a batch, each from its component's windows, in the order of the batch."""
    parts = [(np.flatnonzero(component == c), windows[c]) for c in np.unique(component).tolist()]
    rows = [(at, w.rows(place[at], shift[at], index=index[at], pad=vocab.pad)) for at, w in parts]
    for _, part in rows:  # before an objective looks ids up in tables of the vocabulary
        check_range("tokens", part.tokens, vocab.size, rows=part.index)
    if len(rows) == 1:
        return rows[0][1]
    return (MixedRows if isinstance(rows[0][1], PieceRows) else MixedExampleRows)(index, rows)


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
