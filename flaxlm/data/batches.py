"""`Batches[step]`: the features of one training step, as a pure function of (corpus, objective,
seed, step).

A run numbers its rows: row `step * batch + i` is the i-th of its step. The number alone decides
which component of the mixture the row comes from, which window of it, and how it is corrupted, so a
host makes the rows it needs and no other, any number of hosts makes the same global batch, and the
state of the input pipeline is the step.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from flaxlm.batch import Features, check_features
from flaxlm.data.order import Epochs, Mixture, mixed, permute
from flaxlm.data.pack import Counts, Windows
from flaxlm.data.pieces import Documents, MixedRows, PieceRows
from flaxlm.data.random import RowRandom
from flaxlm.data.spec import Data

# Evaluation sees the same rows, corrupted the same way, in every run: its seed is nobody's choice.
EVALUATION_SEED = 0x5EED


class Batches:
    """The training batches of a run, in random access and without end.

    Attributes:
      counts: per component, what became of its documents.
      fractions: per component, its share of the rows as used: exact over every
        `flaxlm.data.order.BLOCK` rows.
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
        rows: slice | np.ndarray = slice(None),
    ):
        """
        Args:
          components: (prepared corpus, weight) of each of data.sources; each goes through epochs of
            its own.
          objective: see `flaxlm.objectives.base.Objective`.
          vocab: of the corpora.
          data: batch, length and packing.
          seed: of order and corruption.
          rows: which rows of the global batch this host makes.

        Raises:
          DataError: if a component does not make one row.
          ConfigError: if a weight is not above 0.
        """
        names = [source.uri for source in data.sources]
        self._windows = _windows(components, names, objective, vocab, data)
        self._mixture = Mixture([weight for _, weight in components], seed, names=names)
        self._epochs = [
            Epochs(len(w), int(mixed(seed, 4, i)[0])) for i, w in enumerate(self._windows)
        ]
        self._objective, self._vocab, self._batch, self._seed = objective, vocab, data.batch, seed
        self._place = np.arange(data.batch)[rows]
        self.counts = [windows.counts for windows in self._windows]
        self.fractions = self._mixture.fractions
        self.fingerprint = _digest(
            {
                "corpora": [corpus.fingerprint for corpus, _ in components],
                "quota": self._mixture.quota.tolist(),
                "objective": repr(objective),
                "batch": data.batch,
                "length": data.length,
                "packing": data.packing,
                "seed": seed,
            }
        )

    def rows_of(self, step: int) -> np.ndarray:
        """Global numbers of the rows that this host makes for `step`."""
        return int(step) * self._batch + self._place

    def __getitem__(self, step: int) -> Features:
        """Features of this host's rows of `step`, checked against `flaxlm.batch.FEATURES`."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        number = self.rows_of(step)
        component, sample = self._mixture(number)
        index, shift = np.empty_like(number), np.empty_like(number)
        for c in np.unique(component).tolist():
            at = component == c
            epoch, index[at] = self._epochs[c](sample[at])
            shift[at] = self._epochs[c].shift(epoch, self._windows[c].width)
        rows = _read(self._windows, component, index, shift, number, pad=self._vocab.pad)
        return _prepare(rows, self._objective, self._vocab, self._seed)

    def passes(self, steps: int) -> list[float]:
        """How many times the first `steps` steps go through each component."""
        rows = steps * self._batch
        return [
            rows * share / counts.rows
            for share, counts in zip(self.fractions, self.counts, strict=True)
        ]


class EvalBatches(Sequence):
    """A fixed set of held-out rows: the same in every run, whatever its seed.

    Rows come from all components in proportion to their rows, drawn without replacement. A last
    batch that is not full ends in rows of padding, which weigh nothing: no row counts twice.
    """

    def __init__(
        self,
        components: Sequence[tuple[Documents, float]],
        objective,
        vocab,
        *,
        data: Data,
        count: int,
        rows: slice | np.ndarray = slice(None),
    ):
        """At most `count` batches, fewer where the corpora have fewer rows; else as `Batches`.

        `components` belong to data.held_out, or to data.sources where that is (); their weights
        play no part. Without any there are no batches.
        """
        names = [source.uri + " (held out)" for source in data.held_out or data.sources]
        self._windows = _windows(components, names, objective, vocab, data) if components else []
        self._ends = np.cumsum([0, *(len(windows) for windows in self._windows)])[1:]
        self._rows = min(int(self._ends[-1]), count * data.batch) if components else 0
        self._objective, self._vocab, self._batch = objective, vocab, data.batch
        self._place = np.arange(data.batch)[rows]

    def __len__(self) -> int:
        return -(-self._rows // self._batch)

    def __getitem__(self, number: int) -> Features:
        if not 0 <= number < len(self):
            raise IndexError(f"evaluation batch {number} of {len(self)}")
        number = number * self._batch + self._place
        real = number < self._rows
        row = permute(np.where(real, number, 0), int(self._ends[-1]), mixed(EVALUATION_SEED))
        component = np.searchsorted(self._ends, row, side="right")
        before = np.concatenate([[0], self._ends])[component]
        index = np.where(real, row - before, -1)
        shift = np.zeros_like(index)
        rows = _read(self._windows, component, index, shift, number, pad=self._vocab.pad)
        return _prepare(rows, self._objective, self._vocab, EVALUATION_SEED)


class RunAhead(Iterator[Features]):
    """Batches `start` to `stop`, made in the background: at most `ahead` of them wait.

    Use it in a `with` statement, or close it. An error while making a batch is raised by the `next`
    that asks for that batch.
    """

    def __init__(self, batches: Batches, start: int, stop: int, *, ahead: int = 4):
        # One thread: numpy holds the interpreter's lock for much of this work; more only contend.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
        steps = grain.MapDataset.range(start, stop).map(batches.__getitem__)
        self._iterator = iter(steps.to_iter_dataset(options)) if start < stop else None
        if self._iterator is not None:
            self._iterator.start_prefetch()

    def __next__(self) -> Features:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self) -> None:
        """Stop the background work; batches not yet taken are dropped."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "RunAhead":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def run_ahead(batches: Batches, start: int, stop: int, *, ahead: int = 4) -> RunAhead:
    """Iterate over batches start, ..., stop - 1 with up to `ahead` of them made beforehand."""
    return RunAhead(batches, start, stop, ahead=ahead)


def _windows(components, names, objective, vocab, data: Data) -> list[Windows]:
    assert len(components) == len(names) > 0, f"{len(components)} corpora for {len(names)} sources"
    width, separator = objective.window(data.length), objective.separator(vocab)
    return [
        Windows(corpus, width=width, packing=data.packing, separator=separator, name=name)
        for (corpus, _), name in zip(components, names, strict=True)
    ]


def _read(windows, component, place, shift, index, *, pad: int) -> PieceRows | MixedRows:
    """The rows of a batch, each from its component's windows, in the order of the batch."""
    parts = [(np.flatnonzero(component == c), windows[c]) for c in np.unique(component).tolist()]
    rows = [(at, w.rows(place[at], shift[at], index=index[at], pad=pad)) for at, w in parts]
    return rows[0][1] if len(rows) == 1 else MixedRows(index, rows)


def _prepare(rows, objective, vocab, seed: int) -> Features:
    features = objective.prepare(rows, RowRandom(seed, rows.index), vocab)
    check_features(features, vocab_size=vocab.size, rows=rows.index)
    return features


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
