"""How a batch is divided where it does not fit: exact for losses that are means over images, refused for others."""

from __future__ import annotations

from collections.abc import Iterable

from data_prep.settings import SettingsError
from pretrain.config import LossConfig
from pretrain.order import shares


def part_sizes(batch: int, count: int, group: int = 1) -> list[int]:
    """`batch` images in at most `count` parts as equal as whole groups of `group` consecutive images allow."""
    groups = -(-batch // group)
    count = min(count, groups)
    ends = [min(batch, group * (groups * (number + 1) // count)) for number in range(count)]
    return [end - start for start, end in zip([0, *ends], ends)]


def plan(
    batches: Iterable[int], count: int, loss: LossConfig, stage: str, processes: int = 1
) -> dict[int, list[tuple[int, ...]]]:
    """Of every size of batch that a stage has its parts, each as the images that every process has of it.

    Raises SettingsError where they would change the results.
    """
    if count < 1:
        raise SettingsError(f"machine.accumulate={count}: must be 1 or more")
    group = loss.koleo_group if loss.koleo else 1
    if count > 1 and group is None:
        raise SettingsError(
            f"machine.accumulate={count}: KoLeo compares all images of a batch; set stages.{stage}.loss.koleo_group to "
            f"the images of one part or fewer, or loss.koleo=0"
        )
    found, where = {}, f" on {processes} processes" if processes > 1 else ""
    for size in batches:
        if size < processes:
            raise SettingsError(f"stages.{stage}: a batch of {size} cannot be divided among {processes} processes")
        own = [part_sizes(share, count, group or share) for share in shares(size, processes)]
        found[size] = list(zip(*own))
        cut = count > 1 and processes > 1 and any(share % group for share in shares(size, processes))
        if cut or len(found[size]) < min(count, size // processes) or len({len(each) for each in own}) > 1:
            raise SettingsError(
                f"machine.accumulate={count}: stage {stage} has batches of {size}{where}, in which KoLeo's groups of "
                f"{group} images allow {len(found[size])} parts; a smaller loss.koleo_group or accumulate"
            )
    return found
