"""From a volume to its axial slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from data_prep.config import AirConfig
from data_prep.schema import AIR_HU, Slice
from data_prep.volume import Volume


@dataclass
class Tally:
    """What slicing one volume did, for the manifest.

    air        slices left out because there is almost no body in them
    below_air  voxels below −1024 HU (padding), stored as −1024
    above      voxels beyond int16, stored as 32767
    rounded    voxels whose HU was no whole number
    histogram  counts of body voxels by HU, −1024 … 3071, the ends taking what lies beyond
    """

    air: int = 0
    below_air: int = 0
    above: int = 0
    rounded: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(4096, np.int64))


def axial(
    volume: Volume, labelmap: np.ndarray | None, *, subject: str, series: str, air: AirConfig, tally: Tally
) -> Iterator[Slice]:
    """The slices of a CT volume that hold body, inferior→superior; `tally` is filled on the way.

    labelmap  (Z, Y, X) uint8 or None; values present in it anywhere count as annotated
    """
    values = tuple(annotated(labelmap))
    for order, plane in enumerate(volume.voxels):
        pixels = to_int16(plane, tally)
        body = pixels > air.threshold_hu
        if body.mean() < air.min_body_fraction:
            tally.air += 1
            continue
        box = body_box(body)
        tally.histogram += np.bincount(np.clip(pixels[body], -1024, 3071) + 1024, minlength=4096)
        yield Slice(
            pixels=pixels[None],
            sequences=("ct",),
            spacing=volume.spacing[1:],
            position=float(volume.affine[2, 3] + order * volume.affine[2, 2]),
            subject=subject,
            series=series,
            order=order,
            key=f"{series}-{order:05d}",
            box=box,
            labelmap=None if labelmap is None else labelmap[order],
            annotated=values,
            meta=volume.meta,
        )


def annotated(labelmap: np.ndarray | None) -> list[int]:
    """The label values of a series, background left out."""
    if labelmap is None:
        return []
    return [int(value) for value in np.flatnonzero(np.bincount(labelmap.ravel())) if value]


def to_int16(plane: np.ndarray, tally: Tally) -> np.ndarray:
    """HU rounded to whole numbers and held within −1024 … 32767; what that changes is counted."""
    whole = np.rint(plane)
    tally.rounded += int((whole != plane).sum())
    tally.below_air += int((whole < AIR_HU).sum())
    tally.above += int((whole > np.iinfo(np.int16).max).sum())
    return np.clip(whole, AIR_HU, np.iinfo(np.int16).max).astype(np.int16)


def body_box(body: np.ndarray, smallest: float = 0.1) -> tuple[int, int, int, int]:
    """(row0, row1, column0, column1), half open, around the body in a (H, W) mask.

    Pieces below `smallest` of the largest one (a table's edge, a cable) do not widen the box.
    """
    pieces, count = ndimage.label(body)
    sizes = np.bincount(pieces.ravel())[1:]
    kept = np.flatnonzero(sizes >= smallest * sizes.max()) + 1
    found = ndimage.find_objects(pieces, max_label=count)
    rows, columns = zip(*(found[number - 1] for number in kept))
    return (
        min(part.start for part in rows),
        max(part.stop for part in rows),
        min(part.start for part in columns),
        max(part.stop for part in columns),
    )
