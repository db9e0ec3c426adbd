"""Batches made in the background while the devices work on earlier ones."""

from collections.abc import Iterator

import grain

from flaxlm.batch import Features
from flaxlm.data.batches import Batches


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
