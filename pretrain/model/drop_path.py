"""Which tokens go through a block's branches, and which are read behind it: skipped ones cost nothing.

Drop path (stochastic depth, arXiv 1603.09382): a sample's tokens skip a residual branch. Which samples skip is drawn
for each (`data.randomness.Draws`), so it does not depend on how a batch is divided; a branch's output is divided by the
share of samples that stay. Behind the last block, training reads cls tokens and some patches only: keys and values are
computed for all tokens, the rest of the block for those that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pretrain.model.attention import Kernel, bias_of
from pretrain.model.tokens import Packing, Run, length
from pretrain.runtime.device import to_device_async


@dataclass(frozen=True)
class Branch:
    """The tokens that go through a branch.

    rows         (T',) int64 their places in the row that comes to the branch; None: all of it, in order
    packing      how they lie in a row, for attention
    read_tokens  (A',) int64 which of the T' are read; None: all
    targets      (A',) int64 places in the row that the branch's output is added to; None: all of it, in order
    scale        factor of the branch's output
    """

    rows: torch.Tensor | None = None
    packing: Packing | None = None
    read_tokens: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    scale: float = 1.0

    def add_to(self, tokens: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return (A, D) tokens with the branch's (A', D) output added to the rows they belong to."""
        if self.targets is None:
            return tokens + output
        some = tokens[self.targets] + self.scale * output
        return tokens.to(some.dtype).index_copy(0, self.targets, some)


@dataclass(frozen=True)
class BlockRoute:
    """A route through a block: its attention, its feed-forward part, and which of the (T, D) tokens are read behind it.

    read_tokens  (A,) int64 places in the row of the tokens that go on, in their order; None: all
    """

    attention: Branch
    feed_forward: Branch = Branch()
    read_tokens: torch.Tensor | None = None


def select(values: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Return the values at some places; None: all of them."""
    return values if places is None else values.index_select(0, places)


def routes(
    draws: torch.Tensor | None,
    rates: Sequence[float],
    packings: Sequence[Packing],
    read_tokens: torch.Tensor | None,
    kernel: Kernel,
    device: torch.device,
) -> list[BlockRoute]:
    """Return the route through each block.

    draws        (depth, 2, ΣN) uniform numbers in [0, 1) on the host, of the samples of all runs in their order; None:
                 no sample skips anything
    packings     of the whole row, for each block: they differ in their rotations alone
    read_tokens  (A,) int64 on the host: the tokens that are read behind the last block; None: all
    """
    found = [BlockRoute(Branch(packing=packing)) for packing in packings]
    for number, (rate, packing) in enumerate(zip(rates, packings)):
        last = read_tokens if number == len(rates) - 1 else None
        if draws is not None and rate:
            found[number] = _route(draws[number] < 1 - rate, 1 / (1 - rate), packing, last, kernel, device)
        elif last is not None:
            found[number] = BlockRoute(Branch(packing=packing, read_tokens=last), read_tokens=last)
    return _to_device(found, device)


def _route(
    stays: torch.Tensor,
    scale: float,
    packing: Packing,
    read_tokens: torch.Tensor | None,
    kernel: Kernel,
    device: torch.device,
) -> BlockRoute:
    """The route through a block with drop path; `stays` (2, ΣN) says whose tokens go through each branch. On the host.

    scale  1 / (1 − rate), the factor of what a branch gives
    """
    (runs, rows), (_, others) = (_staying(each, packing.runs) for each in stays)
    left = Packing(runs, packing.rotations, bias_of(runs, kernel, device))
    if read_tokens is None:
        return BlockRoute(Branch(rows, left, None, rows, scale), Branch(others, None, None, others, scale))
    total = length(packing.runs)
    among, still = _places(rows, total)[read_tokens], _places(others, total)[read_tokens]
    targets, others = (each.ge(0).nonzero().squeeze(1) for each in (among, still))
    attention = Branch(rows, left, among[targets], targets, scale)
    return BlockRoute(attention, Branch(others, None, None, others, scale), read_tokens)


def _staying(stays: torch.Tensor, runs: Sequence[Run]) -> tuple[tuple[Run, ...], torch.Tensor]:
    """The runs of the samples that stay, and the places of their tokens."""
    left, places, start = [], [], 0
    for run, mine in zip(runs, stays.split([run.samples for run in runs])):
        numbers = mine.nonzero()
        left.append(Run(len(numbers), run.length))
        places.append((start + numbers * run.length + torch.arange(run.length)).flatten())
        start += run.samples * run.length
    return tuple(left), torch.cat(places)


def _places(rows: torch.Tensor, total: int) -> torch.Tensor:
    """(total,) the place of each token among `rows`, −1 where it is not among them."""
    return torch.full((total,), -1).index_copy_(0, rows, torch.arange(len(rows)))


def _to_device(found: Sequence[BlockRoute], device: torch.device) -> list[BlockRoute]:
    """Copy all places of the routes to a device in one message."""
    branches = [branch for route in found for branch in (route.attention, route.feed_forward)]
    listed = [each for branch in branches for each in (branch.rows, branch.read_tokens, branch.targets)]
    listed += [route.read_tokens for route in found]
    every = {id(each): each for each in listed if each is not None}  # what is used twice travels once
    if not every:
        return list(found)
    parts = to_device_async(torch.cat(list(every.values())), device).split([len(each) for each in every.values()])
    there = dict(zip(every, parts))

    def moved(branch: Branch) -> Branch:
        rows, read_tokens, targets = (there.get(id(each)) for each in (branch.rows, branch.read_tokens, branch.targets))
        return replace(branch, rows=rows, read_tokens=read_tokens, targets=targets)

    return [
        BlockRoute(moved(route.attention), moved(route.feed_forward), there.get(id(route.read_tokens)))
        for route in found
    ]
