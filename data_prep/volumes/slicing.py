"""Axial slices from volumes on one grid, at the spacing and size of the user's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep.config import GridConfig
from data_prep.schema import AIR_HU, Slice
from data_prep.volumes.scaling import Scale
from data_prep.volumes.volume import Volume

_CT_BINS = 4096  # one HU each, from −1024
_MR_BIN = 64  # stored values per bin
# slices of _LARGE pixels a side and more are examined in every _COARSE-th row or pixel where that is enough
_LARGE, _COARSE = 256, 4
_EDGES = ndimage.generate_binary_structure(2, 1)  # pixels of one piece share an edge


@dataclass(frozen=True)
class Channel:
    """One sequence of a study.

    voxels   (Z, Y, X) int16 HU where `scale` is None, else signal
    level    stored value above which a pixel is foreground; a whole number, so that planes need no conversion
    covered  (Z,) bool, whether the sequence was acquired there; None: everywhere
    """

    name: str
    voxels: np.ndarray
    level: int
    scale: Scale | None = None
    covered: np.ndarray | None = None

    @property
    def outside(self) -> int:
        """The stored value beyond the edge."""
        return AIR_HU if self.scale is None else int(self.scale.encode(np.zeros(1))[0])


@dataclass(frozen=True)
class SliceOwner:
    """The patient and series of slices: salted hashes, 32 hexadecimal digits."""

    subject: str
    series: str


@dataclass
class SliceCounts:
    """Counts of slicing, for the manifest.

    air         slices left out because they hold almost no foreground
    slices      sequence → slices that hold it
    histograms  sequence → counts of foreground by stored value, from every fourth row of large slices; values beyond
                the ends are counted at the ends
    annotated   label values of the map, without background and what is ignored
    """

    air: int = 0
    annotated: list[int] = field(default_factory=list)
    slices: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)

    def count(self, channel: Channel, plane: np.ndarray, foreground: np.ndarray) -> None:
        """Add one kept plane and the mask of its foreground."""
        self.slices[channel.name] += 1
        every = _COARSE if len(plane) >= _LARGE else 1
        inside = plane[::every][foreground[::every]]
        if channel.scale is None:
            bins, length = np.clip(inside, AIR_HU, AIR_HU + _CT_BINS - 1) - AIR_HU, _CT_BINS
        else:
            bins, length = inside // _MR_BIN, 65536 // _MR_BIN
        counts = np.bincount(bins, minlength=length)
        self.histograms[channel.name] = self.histograms.get(channel.name, 0) + counts

    def sparse(self) -> dict[str, dict[str, int]]:
        """Return sequence → stored value (the lowest of a bin) → count, without zeros."""
        histograms = {}
        for name, counts in self.histograms.items():
            first, step = (AIR_HU, 1) if len(counts) == _CT_BINS else (0, _MR_BIN)
            histograms[name] = {str(first + int(bin) * step): int(counts[bin]) for bin in counts.nonzero()[0]}
        return histograms


class Resampler:
    """Resamples (H, W) planes of one grid to `grid.in_plane_mm`, then crops or pads to `grid.size`.

    spacing  (row, column) in mm afterwards. The extent is kept, so over a whole slice it deviates from the requested
             one by up to half a pixel
    """

    def __init__(self, shape: tuple[int, int], spacing: tuple[float, float], grid: GridConfig) -> None:
        rows, columns = shape
        if grid.in_plane_mm:
            rows, columns = (max(round(n * mm / grid.in_plane_mm), 1) for n, mm in zip(shape, spacing))
        self._from, self._shape = shape, (rows, columns)
        self._changes = self._shape != shape
        self.spacing = spacing[0] * shape[0] / rows, spacing[1] * shape[1] / columns
        self._size = grid.size

    def affine(self, volume: np.ndarray) -> np.ndarray:
        """Return the affine of fitted slices, (x, y, z) indices → mm, from that of their volume."""
        step = np.eye(4)
        for axis, (length, fitted) in enumerate(zip(self._from[::-1], self._shape[::-1])):
            first = 0
            if self._size:
                source, target = _centred(fitted, self._size)
                first = source.start - target.start
            step[axis, axis] = length / fitted
            step[axis, 3] = (first + 0.5) * length / fitted - 0.5
        return volume @ step

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of fitted slices."""
        return (self._size, self._size) if self._size else self._shape

    def image(self, plane: np.ndarray, outside: int) -> np.ndarray:
        """Resample a plane of int16 or uint16 by an antialiased cubic kernel; `outside` beyond the edge."""
        if self._changes:
            limits = np.iinfo(plane.dtype)
            smooth = np.asarray(self._resized(plane.astype(np.float32), Image.Resampling.BICUBIC))
            low, high = max(plane.min(), limits.min), min(plane.max(), limits.max)  # cubic overshoots at edges
            plane = np.clip(np.rint(smooth), low, high).astype(plane.dtype)
        return self._sized(plane, outside)

    def labels(self, plane: np.ndarray) -> np.ndarray:
        """Resample a plane of uint8 labels by nearest neighbour; 0 beyond the edge."""
        if self._changes:
            plane = np.asarray(self._resized(plane, Image.Resampling.NEAREST))
        return self._sized(plane, 0)

    def _resized(self, plane: np.ndarray, method: Image.Resampling) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(plane)).resize(self._shape[::-1], method)

    def _sized(self, plane: np.ndarray, outside: int) -> np.ndarray:
        if not self._size:
            return plane
        out = np.full((self._size, self._size), outside, plane.dtype)
        source, target = zip(*(_centred(n, self._size) for n in plane.shape))
        out[target] = plane[source]
        return out


def _centred(length: int, size: int) -> tuple[slice, slice]:
    """Return the ranges of a line of `length` and of one of `size` that overlap when their centres coincide."""
    kept = min(length, size)
    first, second = (length - kept) // 2, (size - kept) // 2
    return slice(first, first + kept), slice(second, second + kept)


def axial(
    volume: Volume,
    channels: list[Channel],
    labelmap: np.ndarray | None,
    owner: SliceOwner,
    *,
    min_foreground: float,
    grid: GridConfig,
    counts: SliceCounts,
    labels: Mapping[str, float],
    ignored: Collection[int] = (),
) -> Iterator[Slice]:
    """Yield the slices that hold foreground in some sequence, inferior→superior; fill `counts` on the way.

    volume    gives affine and header; all channels lie on its grid
    labelmap  (Z, Y, X) uint8 or None; values present in it anywhere count as annotated
    labels    class labels of the volume, given to every slice
    ignored   label values of voxels that nobody annotated
    """
    counts.annotated = annotated(labelmap, ignored)
    values = tuple(counts.annotated)
    for order in range(len(volume.voxels)):
        present = [channel for channel in channels if channel.covered is None or channel.covered[order]]
        planes = [_pixels(channel, order) for channel in present]
        drawn = None if labelmap is None else labelmap[order]
        spacing = volume.spacing[1], volume.spacing[2]
        if grid.in_plane_mm or grid.size:
            fitted = Resampler(planes[0].shape if planes else (1, 1), spacing, grid)
            planes = [fitted.image(plane, channel.outside) for plane, channel in zip(planes, present)]
            drawn, spacing = None if drawn is None else fitted.labels(drawn), fitted.spacing
        inside = [plane > channel.level for plane, channel in zip(planes, present)]
        if max((np.count_nonzero(mask) / mask.size for mask in inside), default=0) < min_foreground:
            counts.air += 1
            continue
        for channel, plane, mask in zip(present, planes, inside):
            counts.count(channel, plane, mask)
        yield Slice(
            pixels=np.stack(planes) if len(planes) > 1 else planes[0][None],
            sequences=tuple(channel.name for channel in present),
            spacing=spacing,
            position=float(volume.affine[2, 3] + order * volume.affine[2, 2]),
            subject=owner.subject,
            series=owner.series,
            order=order,
            key=f"{owner.series}-{order:05d}",
            box=body_box(reduce(np.logical_or, inside)),
            labelmap=drawn,
            annotated=values,
            labels=dict(labels),
            scales=tuple((channel.scale.slope, channel.scale.intercept) for channel in present if channel.scale),
            meta=volume.meta,
        )


def _pixels(channel: Channel, order: int) -> np.ndarray:
    plane = channel.voxels[order]
    return np.ascontiguousarray(plane if channel.scale is None else channel.scale.encode(plane))


def annotated(labelmap: np.ndarray | None, ignored: Collection[int] = ()) -> list[int]:
    """Return the label values of a series without background and without what is `ignored`."""
    if labelmap is None:
        return []
    counts = np.zeros(256, np.int64)
    for plane in labelmap:
        if plane.any():  # much faster than counting
            counts += np.bincount(plane.ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts) if value and value not in ignored]


def body_box(body: np.ndarray, smallest: float = 0.1) -> tuple[int, int, int, int]:
    """Return (row0, row1, column0, column1), half open, around the body in a (H, W) mask; the whole slice if empty.

    Pieces smaller than `smallest` times the largest one (a table's edge, a cable) do not widen the box. On large
    slices pieces are labelled in every fourth pixel, then the box is fitted to the mask.
    """
    height, width = body.shape
    step = _COARSE if min(body.shape) >= _LARGE else 1
    pieces, count = ndimage.label(body[::step, ::step], _EDGES)
    if not count:
        if not body.any():
            return 0, height, 0, width
        step = 1
        pieces, count = ndimage.label(body, _EDGES)
    boxes = ndimage.find_objects(pieces)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        boxes = [box for box, size in zip(boxes, sizes) if size >= smallest * sizes.max()]
    row0, column0 = (min(box[axis].start for box in boxes) for axis in (0, 1))
    row1, column1 = (max(box[axis].stop for box in boxes) for axis in (0, 1))
    if step == 1:
        return row0, row1, column0, column1
    spare = step - 1  # what lies between the last pixel that was looked at and the next one
    row0, column0 = max(row0 * step - spare, 0), max(column0 * step - spare, 0)
    around: np.ndarray = body[row0 : row1 * step, column0 : column1 * step]
    (top, bottom), (left, right) = (_ends(np.asarray(around.any(axis=axis))) for axis in (1, 0))
    return row0 + top, row0 + bottom, column0 + left, column0 + right


def _ends(line: np.ndarray) -> tuple[int, int]:
    """Return the first true place of a line, and the one after its last."""
    places = np.flatnonzero(line)
    return int(places[0]), int(places[-1]) + 1
