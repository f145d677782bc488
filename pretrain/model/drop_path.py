"""Which tokens go through a block's branches, and which are asked for behind it: others cost nothing.

Drop path (stochastic depth, arXiv 1603.09382): a sample's tokens skip a residual branch. Who skips is drawn for every
sample (`stochastic.Draws`), so that it does not depend on how a batch is divided; what a branch gives counts by the
inverse of the share that stays. Behind the last block a training reads cls tokens and some patches: keys and values
are made of all tokens, the rest of the block of those that are asked for.
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
    """Whose tokens go through a branch.

    rows     (T',) int64 their places in the row that comes to the branch; None: all of it, in its order
    packing  of these tokens, for attention
    asked    (A',) int64 which of the T' are asked for; None: all
    into     (A',) int64 their places in the row that the branch's is added to; None: they are all of it, in its order
    scale    of what the branch gives
    """

    rows: torch.Tensor | None = None
    packing: Packing | None = None
    read_tokens: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    scale: float = 1.0

    def add_to(self, tokens: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """(A, D) tokens with what the branch gives, (A', D), added to those that it is of."""
        if self.targets is None:
            return tokens + given
        some = tokens[self.targets] + self.scale * given
        return tokens.to(some.dtype).index_copy(0, self.targets, some)


@dataclass(frozen=True)
class BlockRoute:
    """A way through a block: by its attention, by its feed-forward part, and which of the (T, D) tokens go on.

    asked  (A,) int64 places in the row of those that go on, in their order; None: all
    """

    attention: Branch
    feed_forward: Branch = Branch()
    read_tokens: torch.Tensor | None = None


def select(values: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """The values at some places; None: all of them."""
    return values if places is None else values.index_select(0, places)


def routes(
    draws: torch.Tensor | None,
    rates: Sequence[float],
    packings: Sequence[Packing],
    read_tokens: torch.Tensor | None,
    kernel: Kernel,
    device: torch.device,
) -> list[BlockRoute]:
    """The way through each block.

    packings  of the whole row, for each block: they differ in their rotations alone
    draws  (depth, 2, ΣN) uniform numbers in [0, 1) on the host, of the samples of all runs in their order; None: no
           sample skips anything
    asked  (A,) int64 on the host: the tokens that are asked for behind the last block; None: all
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
    """Of a block whose branches samples skip; `stays` (2, ΣN) says whose tokens go through each. All on the host."""
    (runs, rows), (_, others) = (_staying(each, packing.runs) for each in stays)
    left = Packing(runs, packing.rotations, bias_of(runs, kernel, device))
    if read_tokens is None:
        return BlockRoute(Branch(rows, left, None, rows, scale), Branch(others, None, None, others, scale))
    total = length(packing.runs)
    among, still = _places(rows, total)[read_tokens], _places(others, total)[read_tokens]
    targets, others = (each.ge(0).nonzero().squeeze(1) for each in (among, still))
    return BlockRoute(
        Branch(rows, left, among[targets], targets, scale), Branch(others, None, None, others, scale), read_tokens
    )


def _staying(stays: torch.Tensor, runs: Sequence[Run]) -> tuple[tuple[Run, ...], torch.Tensor]:
    """The runs of those samples that stay, and the places of their tokens."""
    left, places, start = [], [], 0
    for run, mine in zip(runs, stays.split([run.count for run in runs])):
        numbers = mine.nonzero()
        left.append(Run(len(numbers), run.length))
        places.append((start + numbers * run.length + torch.arange(run.length)).flatten())
        start += run.count * run.length
    return tuple(left), torch.cat(places)


def _places(rows: torch.Tensor, total: int) -> torch.Tensor:
    """(total,) the place of each token among `rows`, −1 where it is none of them."""
    return torch.full((total,), -1).index_copy_(0, rows, torch.arange(len(rows)))


def _to_device(found: Sequence[BlockRoute], device: torch.device) -> list[BlockRoute]:
    """The same on a device, in one message."""
    branches = [branch for path in found for branch in (path.attention, path.feed_forward)]
    listed = [each for branch in branches for each in (branch.rows, branch.read_tokens, branch.targets)]
    listed += [path.read_tokens for path in found]
    every = {id(each): each for each in listed if each is not None}  # what is used twice travels once
    if not every:
        return list(found)
    parts = to_device_async(torch.cat(list(every.values())), device).split([len(each) for each in every.values()])
    there = dict(zip(every, parts))

    def moved(branch: Branch) -> Branch:
        return replace(
            branch, **{name: there.get(id(getattr(branch, name))) for name in ("rows", "read_tokens", "targets")}
        )

    return [
        BlockRoute(moved(path.attention), moved(path.feed_forward), there.get(id(path.read_tokens))) for path in found
    ]
