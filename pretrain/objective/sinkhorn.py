"""The teacher's targets: soft assignments of samples to prototypes, kept from using only a few prototypes.

Sinkhorn-Knopp (SwAV, arXiv 2006.09882) makes every prototype's share of a batch equal; centring (DINO, arXiv
2104.14294, section 3.1) subtracts a moving mean of the logits. Either is one scaling for each prototype. Only the
scaling and the teacher's logits are kept: probabilities are made of some samples at a time, where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pretrain.runtime.distributed import ALONE, World

# float32 numbers that are worked on at a time, by device; `pretrain/planning` makes a CPU pretend to be a GPU with it
LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 26}


@dataclass(frozen=True)
class SoftTargets:
    """Probabilities of T views of N samples: softmax(logits / temperature + scaling) over K prototypes.

    logits (T, N, K) float32 of the teacher, scaling (K,) float32 as `scalings` gives it.
    """

    logits: torch.Tensor
    temperature: float
    scaling: torch.Tensor

    def rows(self, samples: slice) -> torch.Tensor:
        """Return (T, n, K) float32 probabilities of some samples; rows sum to 1."""
        return torch.softmax(_scaled(self.logits[:, samples], self.temperature, self.scaling), dim=-1)

    def chunks(self, more: int = 1) -> Iterator[slice]:
        """Divide all samples into slices, small enough where each sample takes T · K numbers `more` times."""
        views, samples, prototypes = self.logits.shape
        return chunks(samples, views * prototypes * more, self.logits.device)


@torch.no_grad()
def scalings(
    heads: Sequence[Sequence[torch.Tensor]], temperature: float, iterations: int = 3, world: World = ALONE
) -> list[torch.Tensor]:
    """Return (K,) Sinkhorn-Knopp scalings of each head from its teacher's float32 logits, over all ranks' samples.

    heads  for each head, the (M, K) logits of every micro-batch, which are not copied together. M may be 0.

    Scalings are kept as logarithms. A prototype's starts at minus its highest score anywhere. A round gives every
    prototype a sum of 1 over the samples and then every sample a sum of 1 over the prototypes, so that a prototype's
    sum lies between 1 / (M · K) and M: no exponential overflows and no sum vanishes, however low the temperature and
    however far a prototype is from every sample. The sums of all heads travel in one message per iteration; the
    samples' own factors are recomputed from the scaling, in the same pass over the logits as the next sum.
    """
    widths = [parts[0].shape[1] for parts in heads]
    highest = torch.cat([torch.stack([_highest(part) for part in parts]).amax(dim=0) for parts in heads])
    found = -world.max_(highest).div_(temperature)
    for iteration in range(iterations):
        each = zip(heads, found.split(widths))
        sums = torch.cat([_sums(parts, temperature, scaling, bool(iteration)) for parts, scaling in each])
        found = found - world.sum_(sums).log()
    return list(found.split(widths))


class Centring:
    """Moving means of the logits of several heads, to be subtracted before the softmax.

    centres  (K,) float32 of each head, 0 at first
    """

    def __init__(self, widths: Sequence[int], momentum: float = 0.9, device: torch.device | None = None) -> None:
        self.centres = [torch.zeros(width, device=device) for width in widths]
        self.momentum = momentum

    def scalings(self, temperature: float) -> list[torch.Tensor]:
        """Return (K,) scalings of each head, for SoftTargets, by the centres so far."""
        return [-centre / temperature for centre in self.centres]

    @torch.no_grad()
    def move(self, heads: Sequence[Sequence[torch.Tensor]], world: World = ALONE) -> None:
        """Move each centre towards the mean of its head's logits over all ranks; not where there are none.

        heads  as for `scalings`. In one message; every row counts the same, whatever rank has it
        """
        own = [torch.cat([_column_sums(parts), _count(parts)]) for parts in heads]
        sums = world.sum_(torch.cat(own)).split([len(each) for each in own])
        for centre, each in zip(self.centres, sums):
            mean, count = each[:-1] / each[-1].clamp(min=1), each[-1]
            centre.copy_(torch.where(count > 0, torch.lerp(mean, centre, self.momentum), centre))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps."""
        return {f"head{place}": centre for place, centre in enumerate(self.centres)}


def _column_sums(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K,) float32 sums over all rows of the micro-batches' logits."""
    sums = [part.float().sum(dim=0) for part in parts]
    return sum(sums[1:], sums[0])


def _count(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(1,) float32: how many rows the micro-batches have."""
    return parts[0].new_full((1,), sum(map(len, parts)), dtype=torch.float32)


def chunks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Divide 0 … count into slices, small enough where each item takes `width` float32 numbers."""
    size = max(LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"]) // width, 1)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _sums(parts: Sequence[torch.Tensor], temperature: float, scaling: torch.Tensor, balanced: bool) -> torch.Tensor:
    """(K,) sums of each prototype's probabilities over the samples; `balanced`: with those of a sample summing to 1."""
    sums = torch.zeros_like(scaling)
    for logits in parts:
        for some in chunks(len(logits), logits.shape[1], logits.device):
            scores = _scaled(logits[some], temperature, scaling)
            sums += (torch.softmax(scores, dim=1) if balanced else scores.exp_()).sum(dim=0)
    return sums


def _scaled(logits: torch.Tensor, temperature: float, scaling: torch.Tensor) -> torch.Tensor:
    return torch.add(scaling, logits, alpha=1 / temperature)


def _highest(logits: torch.Tensor) -> torch.Tensor:
    """(K,) the highest logit of each prototype; minus infinity where there are no rows."""
    return logits.amax(dim=0) if len(logits) else logits.new_full(logits.shape[1:], -torch.inf)
