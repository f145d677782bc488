"""Which source each position of a training belongs to: a pure function of the shares and the seed.

Each source has its own clock. Draw k of one with share w lies at time (k + u) / w, u a uniform number of its own, so
one draw in each of equal stretches; the positions of the training are the draws of all sources in the order of time.
Every stretch of positions therefore holds each source's share to within about as many draws as there are sources,
while the places within it are random: no rank and no micro-batch meets a source regularly. Any position is found
without those before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretrain.data.order import Chain, identify
from pretrain.data.randomness import mix64

_SCALE = 1 << 24  # shares are whole numbers of this part, times whole numbers of one over this
LEAST_SHARE = 100 / _SCALE  # what rounding to whole numbers changes by half a per cent at most
_PLACE = 160  # of the randomness


class Mixture:
    """The endless sequence of samples of one source or several.

    chains  each source's own; share (K,) above 0, which sum to 1 (`pretrain.shares`)
    """

    def __init__(self, chains: Sequence[Chain], share: np.ndarray, seed: int) -> None:
        self.chains, self.seed = list(chains), seed
        self._parts = _whole(share)

    def batch(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, epoch), each (size,) int64, of global batch `number` where all have `size`."""
        return self.positions(number * size, size)

    def positions(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sample, epoch of its source), each (size,) int64, at the `size` positions from `first` on.

        A sample is identified as in `order.py`.
        """
        if len(self.chains) == 1:
            return self.chains[0].positions(first, size)
        source, draw = self.draws(first, size)
        sample, epoch = np.empty(size, np.int64), np.empty(size, np.int64)
        for number, chain in enumerate(self.chains):
            mine = np.flatnonzero(source == number)
            if len(mine):  # consecutive draws of this source
                drawn, epoch[mine] = chain.positions(int(draw[mine[0]]), len(mine))
                sample[mine] = identify(drawn, number)
        return sample, epoch

    def counts(self, position: int) -> np.ndarray:
        """Return the (K,) int64 draws of each source at the positions before `position`."""
        if len(self.chains) == 1:
            return np.array([position], np.int64)
        before, source, _ = self._around(position, 0)
        return before + np.bincount(source[: position - int(before.sum())], minlength=len(before))

    def draws(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (source, its draw), each (size,) int64, at the `size` positions from `first` on."""
        before, source, draw = self._around(first, size)
        here = slice(first - int(before.sum()), first - int(before.sum()) + size)
        return source[here], draw[here]

    def _around(self, first: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the (K,) draws before some time, and the sources and draws after it until positions are covered.

        Until time t, which counts positions, a source with share w has had ⌊w t⌋ or one more draws, and all of them
        together t ± K: the time K before `first` comes before that position, and one K after the last behind it.
        """
        count = len(self._parts)
        begin, end = max(first - count, 0), first + size + count
        before = np.zeros(count, np.int64)
        sources, draws, times = [], [], []
        for number, part in enumerate(self._parts.tolist()):
            near = max(begin * part // _SCALE - 2, 0)
            draw = np.arange(near, end * part // _SCALE + 3, dtype=np.int64)
            time = (draw * _SCALE + self._places(number, draw)) / part
            inside = time >= begin
            before[number] = near + np.count_nonzero(~inside)
            draws.append(draw[inside])
            times.append(time[inside])
            sources.append(np.full(len(draws[-1]), number))
        source, draw = np.concatenate(sources), np.concatenate(draws)
        order = np.lexsort((draw, source, np.concatenate(times)))
        return before, source[order], draw[order]

    def _places(self, source: int, draw: np.ndarray) -> np.ndarray:
        """Return (N,) int64 places of a source's draws in their stretches, in 0 … _SCALE − 1."""
        key = np.array([self.seed % 2**64, _PLACE, source], np.uint64)
        state = np.zeros(1, np.uint64)
        for part in key:
            state = mix64(state ^ part)
        return (mix64(state ^ mix64(draw.astype(np.uint64))) >> np.uint64(40)).astype(np.int64)


def _whole(share: np.ndarray) -> np.ndarray:
    """Return the shares as whole numbers above 0 whose sum is _SCALE."""
    parts = np.maximum(np.rint(share * _SCALE).astype(np.int64), 1)
    parts[np.argmax(parts)] += _SCALE - int(parts.sum())
    return parts


def chain_seed(seed: int, source: int) -> int:
    """Return the seed of a source's chain; the first one's is the training's own."""
    if not source:
        return seed
    mixed = mix64(np.array([seed % 2**64], np.uint64) ^ mix64(np.array([source], np.uint64)))
    return int(mixed[0] >> np.uint64(1))  # as a signed number
