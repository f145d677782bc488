"""Drop path (stochastic depth, arXiv 1603.09382): a sample's tokens skip a residual branch, which then costs nothing.

Who skips is drawn for every sample (`stochastic.Draws`), so that it does not depend on how a batch is divided; what a
branch gives counts by the inverse of the share that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pretrain.attention import Kernel, bias_of
from pretrain.machine import sent
from pretrain.packing import Packing, Run


@dataclass(frozen=True)
class Kept:
    """Whose tokens go through a branch.

    packing  of these tokens
    rows     (T',) int64 their places in the row of all tokens; None: all of them, in its order
    scale    of what the branch gives
    """

    packing: Packing
    rows: torch.Tensor | None = None
    scale: float = 1.0

    def add(self, tokens: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(T, D) tokens with what `branch` gives for those that go through it added to them."""
        if self.rows is None:
            return tokens + branch(tokens)
        some = tokens[self.rows]
        some = some + self.scale * branch(some)
        return tokens.to(some.dtype).index_copy(0, self.rows, some)


def kept(
    draws: torch.Tensor, rates: Sequence[float], packing: Packing, kernel: Kernel, device: torch.device
) -> list[tuple[Kept, Kept] | None]:
    """Who goes through the two branches of each block; None for a block whose rate is 0.

    draws  (depth, 2, ΣN) uniform numbers in [0, 1) on the host, of the samples of all runs in their order
    """
    found = [
        [_kept(row < 1 - rate, packing.runs) for row in each] if rate else None for each, rate in zip(draws, rates)
    ]
    # one message to the device for all blocks
    every = [rows for block in found if block for _, rows in block]
    places = iter(sent(torch.cat(every), device).split([len(rows) for rows in every])) if every else iter(())
    return [
        tuple(
            Kept(Packing(runs, packing.rotations, bias_of(runs, kernel, device)), next(places), 1 / (1 - rate))
            for runs, _ in block
        )
        if block
        else None
        for block, rate in zip(found, rates)
    ]


def _kept(stays: torch.Tensor, runs: Sequence[Run]) -> tuple[tuple[Run, ...], torch.Tensor]:
    """The runs of those samples that stay, and the places of their tokens."""
    left, places, start = [], [], 0
    for run, mine in zip(runs, stays.split([run.count for run in runs])):
        numbers = mine.nonzero()
        left.append(Run(len(numbers), run.length))
        places.append((start + numbers * run.length + torch.arange(run.length)).flatten())
        start += run.count * run.length
    return tuple(left), torch.cat(places)
