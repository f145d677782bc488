"""The order of samples: a pure function of their number, the seed and the epoch.

Global batch b is positions b·B … (b+1)·B − 1 of the endless chain of the epochs' orders, so no sample
is missed or seen twice within an epoch, and a run can be resumed at any batch.
"""

from __future__ import annotations

import numpy as np

from pretrain.data.randomness import mix64


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the (samples,) int64 permutation of one epoch."""
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
        """Return (sample, epoch), each (size,) int64, of global batch `number`."""
        return self.positions(number * size, size)

    def positions(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, epoch), each (size,) int64, at the `size` positions from `first` on."""
        epoch, place = np.divmod(np.arange(first, first + size, dtype=np.int64), self.samples)
        needed = range(int(epoch[0]), int(epoch[-1]) + 1)
        kept = {each: self._orders.get(each) for each in needed}
        self._orders = {e: epoch_order(self.samples, self.seed, e) if o is None else o for e, o in kept.items()}
        sample = np.empty(size, np.int64)
        for each, order in self._orders.items():
            mine = epoch == each
            sample[mine] = order[place[mine]]
        return sample, epoch


def shares(size: int, world: int) -> list[int]:
    """Return the samples of a global batch for each of `world` ranks, as equal as can be; the first ones have one more.

    Raises ValueError where there are more ranks than samples.
    """
    if size < world:
        raise ValueError(f"a batch of {size} cannot be divided among {world} processes")
    return [size // world + (rank < size % world) for rank in range(world)]


def rank_slice(size: int, rank: int, world: int) -> slice:
    """Return a rank's slice of a global batch. Raises ValueError where there are more ranks than samples."""
    counts = shares(size, world)
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def fingerprint(sample: np.ndarray, epoch: np.ndarray) -> int:
    """Return a number below 2⁴⁸ that identifies a set of (sample, epoch); additive over disjoint parts, modulo 2⁴⁸."""
    mixed = mix64(sample.astype(np.uint64) ^ mix64(epoch.astype(np.uint64) + np.uint64(1)))
    return int((mixed >> np.uint64(16)).sum(dtype=np.uint64)) % 2**48
