"""How the batches of a stage are made up: which crop sizes each step has, and how its batch is divided.

Crop sizes are one pair throughout, or a mixture drawn by ratio; a step's draw is a function of seed and step, so a run
can be resumed at any step.

The batch is the same at every size, as in the references: the learning rate, Sinkhorn's balance, KoLeo's neighbours and
the teacher's momentum were all chosen for that many images. A pair with more pixels needs more memory than the stage's
own sizes; it trades time for it instead: its batch goes through the student in more micro-batches (`BatchPlan.scales`),
so such a step takes longer in proportion to its pixels. What is held for a whole batch still grows with them: its
crops, and the teacher's logits of all masked patches, which Sinkhorn balances together.

A batch is divided among processes first, and then in time, into micro-batches. Every loss but KoLeo is a mean over
images, so micro-batches add up; KoLeo's neighbours are the business of `pretrain/objective/koleo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from meddap.settings import SettingsError
from pretrain.data.order import shares
from pretrain.objective.koleo import spans_micro_batches

_PURPOSE = 0x6D6978  # of the randomness


@dataclass(frozen=True)
class BatchPlan:
    """The steps of a stage.

    choice    (steps,) number of the pair of crop sizes that a step has
    scales    pixels of a sample at each pair, relative to the stage's own crop sizes
    sizes     (steps,) samples of its global batch: the stage's batch size throughout
    starts    (steps + 1,) samples before it
    """

    choice: np.ndarray
    scales: list[Fraction]
    sizes: np.ndarray
    starts: np.ndarray


def plan_batches(
    steps: int, batch_size: int, seed: int, ratios: Sequence[float], scales: Sequence[Fraction]
) -> BatchPlan:
    """Draw the crop sizes of every step.

    ratios  share of the steps that each pair of crop sizes has, relative to their sum
    scales  as in BatchPlan
    """
    weights = np.array(ratios, float)
    draws = np.random.Generator(np.random.Philox(key=[seed, _PURPOSE])).random(steps)
    choice = np.searchsorted(np.cumsum(weights / weights.sum()), draws, side="right").clip(max=len(weights) - 1)
    starts = batch_size * np.arange(steps + 1)
    return BatchPlan(choice, list(scales), np.diff(starts), starts)


def micro_batch_sizes(batch: int, count: int, group: int = 1) -> list[int]:
    """Divide `batch` images into at most `count` sizes, as equal as whole groups of `group` consecutive ones allow."""
    groups = -(-batch // group)
    count = min(count, groups)
    ends = [min(batch, group * (groups * (number + 1) // count)) for number in range(count)]
    return [end - start for start, end in zip([0, *ends], ends)]


def divide_batch(batch: int, count: int, group: int | None, processes: int = 1) -> list[tuple[int, ...]]:
    """Divide a batch into `count` micro-batches: the images that each process has of each.

    There are fewer where a process has fewer images.

    group  images among which KoLeo seeks neighbours, None for all. Micro-batches are whole groups where that makes none
           of them larger, because it saves KoLeo's first pass
    """
    of_processes = shares(batch, processes)
    count = min(count, of_processes[-1])
    even = [micro_batch_sizes(share, count) for share in of_processes]
    whole = even if group is None else [micro_batch_sizes(share, count, group) for share in of_processes]
    if all(len(each) == count and max(each) <= max(even[0]) for each in whole):
        found = list(zip(*whole))
        if not spans_micro_batches(found, group):
            return found
    return list(zip(*even))


def micro_batch_count(count: int, scale: Fraction) -> int:
    """Micro-batches for images with `scale` times the pixels of those for which `count` micro-batches suffice."""
    return math.ceil(count * scale)


def plan_micro_batches(
    batch: int, count: int, scales: Sequence[Fraction], group: int | None, stage: str, processes: int = 1
) -> list[list[tuple[int, ...]]]:
    """Divide a stage's batch (see `divide_batch`) at each of its pairs of crop sizes.

    count   micro-batches at the stage's own crop sizes (machine.accumulate)
    scales  as in BatchPlan
    Raises SettingsError.
    """
    if count < 1:
        raise SettingsError(f"machine.accumulate={count}: must be 1 or more")
    if batch < processes:
        raise SettingsError(
            f"stages.{stage}.batch_size={batch}: cannot be divided among {processes} processes; start at most {batch}"
        )
    return [divide_batch(batch, micro_batch_count(count, scale), group, processes) for scale in scales]
