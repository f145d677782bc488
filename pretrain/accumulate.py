"""How a batch that does not fit is divided: among processes, and then in time (micro-batches, here "parts").

Every loss but KoLeo is a mean over images, so that parts add up; KoLeo's neighbours are koleo.py's matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from meddap.settings import SettingsError
from pretrain.data.order import shares
from pretrain.objective.koleo import spans_parts


def part_sizes(batch: int, count: int, group: int = 1) -> list[int]:
    """`batch` images in at most `count` parts as equal as whole groups of `group` consecutive images allow."""
    groups = -(-batch // group)
    count = min(count, groups)
    ends = [min(batch, group * (groups * (number + 1) // count)) for number in range(count)]
    return [end - start for start, end in zip([0, *ends], ends)]


def divided(batch: int, count: int, group: int | None, processes: int = 1) -> list[tuple[int, ...]]:
    """The `count` parts of a batch as the images that each process has of them; fewer where a process has fewer images.

    group  images among which KoLeo seeks neighbours, None for all. Parts are whole groups where that makes none of them
           larger: it spares KoLeo's first pass
    """
    of_processes = shares(batch, processes)
    count = min(count, of_processes[-1])
    even = [part_sizes(share, count) for share in of_processes]
    whole = even if group is None else [part_sizes(share, count, group) for share in of_processes]
    if all(len(each) == count and max(each) <= max(even[0]) for each in whole):
        found = list(zip(*whole))
        if not spans_parts(found, group):
            return found
    return list(zip(*even))


def wanted(count: int, scale: Fraction) -> int:
    """The parts of a batch whose images have `scale` times the pixels of those for which `count` parts suffice."""
    return math.ceil(count * scale)


def plan(
    batch: int, count: int, scales: Sequence[Fraction], group: int | None, stage: str, processes: int = 1
) -> list[list[tuple[int, ...]]]:
    """The parts of a stage's batch (see `divided`) for each of its variants.

    count   parts at the stage's own crop sizes (machine.accumulate)
    scales  pixels of each variant by those of the stage's own sizes
    Raises SettingsError.
    """
    if count < 1:
        raise SettingsError(f"machine.accumulate={count}: must be 1 or more")
    if batch < processes:
        raise SettingsError(
            f"stages.{stage}.batch_size={batch}: cannot be divided among {processes} processes; start at most {batch}"
        )
    return [divided(batch, wanted(count, scale), group, processes) for scale in scales]
