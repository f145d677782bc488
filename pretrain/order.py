"""The order of samples: a pure function of their number, the seed and the epoch.

Global batch b is positions b·B … (b+1)·B − 1 of the endless chain of the epochs' orders, so no sample
is missed or seen twice within an epoch, and a run can be taken up at any batch.
"""

from __future__ import annotations

import numpy as np


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """(samples,) int64 permutation of one epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(samples)


class Chain:
    """The chain of epochs' orders over `samples` samples; keeps the orders of the epochs in use."""

    def __init__(self, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError("no samples to put in order")
        self.samples, self.seed = samples, seed
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(sample, epoch), each (size,) int64, of global batch `number`."""
        return self.stretch(number * size, size)

    def stretch(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(sample, epoch), each (size,) int64, of the positions from `first` on."""
        epoch, place = np.divmod(np.arange(first, first + size, dtype=np.int64), self.samples)
        needed = range(int(epoch[0]), int(epoch[-1]) + 1)
        kept = {each: self._orders.get(each) for each in needed}
        self._orders = {e: epoch_order(self.samples, self.seed, e) if o is None else o for e, o in kept.items()}
        sample = np.empty(size, np.int64)
        for each, order in self._orders.items():
            mine = epoch == each
            sample[mine] = order[place[mine]]
        return sample, epoch


def part(size: int, rank: int, world: int) -> slice:
    """A rank's stretch of a global batch. Raises ValueError where the batch does not divide."""
    if size % world:
        raise ValueError(f"batch_size {size} is no multiple of {world} processes")
    share = size // world
    return slice(rank * share, (rank + 1) * share)
