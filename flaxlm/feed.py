"""From a host's features to global arrays on the mesh."""

import jax
import numpy as np

from flaxlm.batch import Features
from flaxlm.plan import Plan


class Feed:
    """Which rows of a global batch this process makes, and their way to its devices.

    Attributes:
      shardings: {feature: sharding of the global array}.
    """

    def __init__(self, plan: Plan):
        self.shardings = plan.batch_shardings()
        self._rows: dict[int, np.ndarray] = {}
        for features in plan.phases.values():
            name, shape = next((name, x.shape) for name, x in features.items())
            here = self.shardings[name].addressable_devices_indices_map(shape).values()
            rows = [np.arange(shape[0])[index[0]] for index in here]
            self._rows[shape[0]] = np.unique(np.concatenate(rows))
        # A process holds the same share of every batch, so its rows tell which batch they are of.
        self._batch = {len(rows): batch for batch, rows in self._rows.items()}

    def rows(self, batch: int) -> np.ndarray:
        """[n] numbers of the rows, ascending, of a global batch of a phase. Processes whose devices
        hold the same rows make the same rows.
        """
        return self._rows[batch]

    def __call__(self, features: Features) -> dict[str, jax.Array]:
        """This process's rows (in the order of `rows`) as its part of the global arrays."""

        def build(name):
            batch = self._batch[len(features[name])]
            rows, shape = self._rows[batch], (batch, *features[name].shape[1:])

            def shard(index):
                first, last, _ = index[0].indices(batch)
                start = np.searchsorted(rows, first)
                return features[name][start : start + last - first][(slice(None), *index[1:])]

            return jax.make_array_from_callback(shape, self.shardings[name], shard)

        return {name: build(name) for name in features}
