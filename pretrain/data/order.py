"""The order of one source's samples: a pure function of their number, the seed and the epoch.

A source is a data set of the training. Draw k of it is entry k of the endless chain of its epochs' orders, so no sample
is missed or seen twice within an epoch; with weights, one of weight w (their mean is 1) comes ⌊w⌋ or ⌈w⌉ times.
`mixture.py` says which draws make a global batch: of one source, batch b is its draws b·B … (b+1)·B − 1.

A sample of a training is one int64: its number in its split, its source above bit 40, and above bit 52 which of its
appearances in the epoch this is. In a training on one data set without weights, that is its number.
"""

from __future__ import annotations

import numpy as np

from pretrain.data.randomness import mix64

MOST_SOURCES = 1 << 12
MOST_REPEATS = 1 << 10  # of a sample in one epoch
_SOURCE, _REPEAT = 40, 52
_ONE = 1 << 32  # a weight of 1: weights are summed as whole numbers, which round nowhere


def identify(number: np.ndarray, source: int, repeat: np.ndarray | int = 0) -> np.ndarray:
    """Return the int64 identities of samples of a source by their numbers in its split."""
    return number | np.int64(source << _SOURCE) | (np.asarray(repeat, np.int64) << _REPEAT)


def number_of(sample: np.ndarray) -> np.ndarray:
    """Return the numbers of samples in the splits of their sources."""
    return sample & ((1 << _SOURCE) - 1)


def source_of(sample: np.ndarray) -> np.ndarray:
    """Return the numbers of samples' sources."""
    return (sample >> _SOURCE) & (MOST_SOURCES - 1)


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the (samples,) int64 permutation of one epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(samples)


def weighted_order(units: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of an epoch whose samples have weights: sample and which of its appearances this is, (N,) each.

    units  (N,) int64 as `units_of` gives them

    Systematic sampling: the samples are laid end to end in a random order, each as long as its weight, and a comb of
    spacing 1 with a random offset takes those that its N teeth hit.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    laid = generator.permutation(len(units))
    ends = np.cumsum(units[laid]) + generator.integers(_ONE)
    times = np.diff(ends // _ONE, prepend=0)
    sample = np.repeat(laid, times)
    repeat = np.arange(len(sample)) - np.repeat(np.cumsum(times) - times, times)
    drawn = generator.permutation(len(sample))
    return sample[drawn], repeat[drawn]


def units_of(weights: np.ndarray) -> np.ndarray:
    """Return (N,) int64 weights in units of 2⁻³², scaled to a mean of exactly 1.

    weights  (N,), not negative, some above 0
    """
    exact = weights.astype(np.float64)
    units = np.rint(exact * (len(exact) / exact.sum()) * _ONE).astype(np.int64)
    # what rounding left over goes to the largest ones, a unit each
    left = len(units) * _ONE - int(units.sum())
    units[np.argsort(-units, kind="stable")[: abs(left)]] += np.sign(left)
    return units


class Chain:
    """The chain of the epochs' orders over a source's `samples`; keeps the orders of the epochs in use.

    weights  (samples,) how often each comes by the others, or None: all once an epoch. An epoch has as many entries
    numbers  (samples,) their numbers in the split, or None: 0, 1, …
    """

    def __init__(
        self, samples: int, seed: int, weights: np.ndarray | None = None, numbers: np.ndarray | None = None
    ) -> None:
        if samples < 1:
            raise ValueError("no samples to put in order")
        self.samples, self.seed, self._numbers = samples, seed, numbers
        self._units = None if weights is None else units_of(weights)
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, epoch), each (size,) int64, of batch `number` of this source alone."""
        return self.positions(number * size, size)

    def positions(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, epoch), each (size,) int64, at the `size` positions from `first` on."""
        epoch, place = np.divmod(np.arange(first, first + size, dtype=np.int64), self.samples)
        needed = range(int(epoch[0]), int(epoch[-1]) + 1)
        kept = {each: self._orders.get(each) for each in needed}
        self._orders = {e: self._order(e) if o is None else o for e, o in kept.items()}
        sample = np.empty(size, np.int64)
        for each, order in self._orders.items():
            mine = epoch == each
            sample[mine] = order[place[mine]]
        return sample, epoch

    def _order(self, epoch: int) -> np.ndarray:
        if self._units is None:
            sample, repeat = epoch_order(self.samples, self.seed, epoch), None
        else:
            sample, repeat = weighted_order(self._units, self.seed, epoch)
        numbers = sample if self._numbers is None else self._numbers[sample]
        return numbers if repeat is None else identify(numbers, 0, repeat)


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
