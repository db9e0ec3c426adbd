"""From a host's features to global arrays on the mesh."""

import jax
import numpy as np

from flaxlm.batch import Features
from flaxlm.plan import Plan


class Feed:
    """Which rows of the global batch this process makes, and their way to its devices.

    Attributes:
      rows: [n] numbers of the rows, ascending. Processes whose devices hold the same rows make the
        same rows.
      shardings: {feature: sharding of the global array}.
    """

    def __init__(self, plan: Plan):
        self._shapes = {name: feature.shape for name, feature in plan.features.items()}
        self.shardings = plan.batch_shardings()
        name, shape = next(iter(self._shapes.items()))
        here = self.shardings[name].addressable_devices_indices_map(shape).values()
        self.rows = np.unique(np.concatenate([np.arange(shape[0])[index[0]] for index in here]))

    def __call__(self, features: Features) -> dict[str, jax.Array]:
        """This process's rows (in the order of `rows`) as its part of the global arrays."""

        def build(name):
            def shard(index):
                first, last, _ = index[0].indices(self._shapes[name][0])
                start = np.searchsorted(self.rows, first)
                return features[name][start : start + last - first][(slice(None), *index[1:])]

            return jax.make_array_from_callback(self._shapes[name], self.shardings[name], shard)

        return {name: build(name) for name in self._shapes}
