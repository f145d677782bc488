"""What ranks tell each other in a step: one message, from which all of them draw the same conclusions.

Losses become the batch's; whoever was asked to stop, or could not save, stops all; a slow loader is told by its rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pretrain.runtime.distributed import World

_STEPS = 50  # over which a loader must be slow to be named
_SLOW, _TIMES = 0.2, 3  # share of the time spent waiting, and how many times the other ranks' median


@dataclass(frozen=True)
class Own:
    """What only this rank knows of its step.

    seconds  of the step, of which `waited` for the loader; images in its part of the batch
    memory   GB of the GPU in use at most, 0 without one
    samples  fingerprint of the samples that it saw (`order.fingerprint`)
    stop     number of the signal that asked it to stop, or 0; failed: it could not save
    """

    seconds: float
    waited: float
    images: int
    memory: float
    samples: int
    stop: int
    failed: bool


@dataclass(frozen=True)
class Meeting:
    """What all ranks know after it: the batch's losses by name, and `Own` of every rank."""

    values: dict[str, float]
    ranks: list[Own]

    @property
    def samples(self) -> str:
        """Fingerprint of the global batch's samples, whatever rank saw them."""
        return f"{sum(rank.samples for rank in self.ranks) % 2**48:012x}"

    @property
    def stop(self) -> int:
        return max(rank.stop for rank in self.ranks)

    @property
    def failed(self) -> list[int]:
        """Ranks that could not save."""
        return [number for number, rank in enumerate(self.ranks) if rank.failed]

    def timing(self, each: bool) -> dict[str, object]:
        """The row's part that the clock says: over all, and, where `each`, of every one of several ranks."""
        seconds = max(rank.seconds for rank in self.ranks)
        found: dict[str, object] = {
            "images_per_s": sum(rank.images for rank in self.ranks) / seconds,
            "wait_share": max(rank.waited / rank.seconds for rank in self.ranks),
        }
        if any(rank.memory for rank in self.ranks):
            found["memory_gb"] = max(rank.memory for rank in self.ranks)
        if each and len(self.ranks) > 1:
            found["ranks"] = {
                "images_per_s": [round(rank.images / rank.seconds, 1) for rank in self.ranks],
                "wait_share": [round(rank.waited / rank.seconds, 3) for rank in self.ranks],
                "memory_gb": [round(rank.memory, 2) for rank in self.ranks],
            }
        return found


def meet(world: World, scalars: Mapping[str, torch.Tensor], own: Own) -> Meeting:
    """Exchange scalars and `own`. A scalar is the mean over ranks: what is global already stays as it is."""
    values = torch.stack([value.detach().float() for value in scalars.values()]).tolist()
    facts = list(vars(own).values())
    table = world.table([*values, *map(float, facts)])
    means = [sum(column) / len(table) for column in zip(*(row[: len(values)] for row in table))]
    kinds = [type(fact) for fact in facts]
    ranks = [Own(*(kind(fact) for kind, fact in zip(kinds, row[len(values) :]))) for row in table]
    return Meeting(dict(zip(scalars, means)), ranks)


class Loaders:
    """Looks at every meeting; a rank whose loader is slow for 50 steps, and slower than others', is named once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._seen: deque[list[tuple[float, float]]] = deque(maxlen=_STEPS)
        self._told: set[int] = set()

    def look(self, meeting: Meeting) -> list[str]:
        """The warnings that this meeting completes."""
        self._seen.append([(rank.waited, rank.seconds) for rank in meeting.ranks])
        if len(self._seen) < _STEPS or self.world.size == 1:
            return []
        shares = [sum(waited for waited, _ in each) / sum(all_ for _, all_ in each) for each in zip(*self._seen)]
        usual = sorted(shares)[(len(shares) - 1) // 2]
        slow = {rank for rank, share in enumerate(shares) if share > _SLOW and share > _TIMES * usual} - self._told
        self._told |= slow
        return [
            f"rank {rank} on {self.world.hosts[rank]} waits for its loader {shares[rank]:.0%} of the time, the others "
            f"{usual:.0%}, and everybody waits for it: look at its disk, or raise machine.decode_threads"
            for rank in sorted(slow)
        ]
