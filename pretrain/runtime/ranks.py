"""What ranks exchange in a step: one message, from which all of them draw the same conclusions.

Losses become the batch's; a rank that received a signal, or could not save, stops all; a slow loader is named by rank.
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
class RankStats:
    """What one rank measured in its step.

    seconds      of the step, `waited` of them for the loader; `images` in its share of the batch
    memory       most GB of GPU memory in use so far, 0 without a GPU
    samples      fingerprint of its samples (`order.fingerprint`)
    stop_signal  number of the signal that asked it to stop, or 0
    save_failed  whether it could not write its checkpoint
    """

    seconds: float
    waited: float
    images: int
    memory: float
    samples: int
    stop_signal: int
    save_failed: bool


@dataclass(frozen=True)
class StepStats:
    """What all ranks know after a step: the batch's losses by name, and the RankStats of every rank."""

    values: dict[str, float]
    ranks: list[RankStats]

    @property
    def samples(self) -> str:
        """Fingerprint of the global batch's samples, whichever ranks had them."""
        return f"{sum(rank.samples for rank in self.ranks) % 2**48:012x}"

    @property
    def stop_signal(self) -> int:
        """Number of the signal that stops the run, or 0."""
        return max(rank.stop_signal for rank in self.ranks)

    @property
    def failed(self) -> list[int]:
        """Ranks that could not save."""
        return [number for number, rank in enumerate(self.ranks) if rank.save_failed]

    def timing(self, each: bool) -> dict[str, object]:
        """Return a row's timings (`metrics.TIMING`): over all ranks and, with `each`, of every one of several."""
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


def sync_step(world: World, scalars: Mapping[str, torch.Tensor], own: RankStats) -> StepStats:
    """Exchange scalars and `own` statistics. A scalar becomes the mean over ranks: a global one stays as it is."""
    values = torch.stack([value.detach().float() for value in scalars.values()]).tolist()
    facts = list(vars(own).values())
    table = world.table([*values, *map(float, facts)])
    means = [sum(column) / len(table) for column in zip(*(row[: len(values)] for row in table))]
    kinds = [type(fact) for fact in facts]
    ranks = [RankStats(*(kind(fact) for kind, fact in zip(kinds, row[len(values) :]))) for row in table]
    return StepStats(dict(zip(scalars, means)), ranks)


class LoaderMonitor:
    """Names each rank whose loader is slow for 50 steps, and slower than the others', once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._seen: deque[list[tuple[float, float]]] = deque(maxlen=_STEPS)
        self._reported: set[int] = set()

    def update(self, stats: StepStats) -> list[str]:
        """Add a step; return the warnings that it completes."""
        self._seen.append([(rank.waited, rank.seconds) for rank in stats.ranks])
        if len(self._seen) < _STEPS or self.world.size == 1:
            return []
        shares = [sum(waited for waited, _ in each) / sum(seconds for _, seconds in each) for each in zip(*self._seen)]
        usual = sorted(shares)[(len(shares) - 1) // 2]
        slow = {rank for rank, share in enumerate(shares) if share > _SLOW and share > _TIMES * usual} - self._reported
        self._reported |= slow
        return [
            f"rank {rank} on {self.world.hosts[rank]} waits for its loader {shares[rank]:.0%} of the time, the others "
            f"{usual:.0%}, and everybody waits for it: look at its disk, or raise machine.decode_threads"
            for rank in sorted(slow)
        ]
