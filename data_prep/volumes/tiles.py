"""Tiles of pictures: where they lie, at which resolution they are read, and which of them hold tissue.

Tiles of one size cover a picture from edge to edge, so that neighbours may overlap more than is asked for. A pixel of
a slide in colour is tissue if its saturation (HSV) lies above a threshold: glass is white or grey, stains are not.
Pixels that are nearly black are none (what the scanner filled, pen). The threshold is Otsu's of a small image of the
slide, kept between 0.03 and 0.15, so that neither a slide full of tissue nor one of glass alone is halved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.config import TileConfig
from data_prep.volumes.slides import RegionImage
from data_prep.volumes.volume import RejectedSeries

_LEAST_OVERVIEW, _OVERVIEW = 2048, 4096  # pixels of the longer side of the small image
_BLOCK = 1024  # pixels a side that are read at a time for it
_OTSU = 8, 38  # 0.03 and 0.15 of 255
_DARK = 20  # brightest channel, of 255, up to which a pixel is black
_SUPPORT = 2  # pixels of the result that the cubic kernel reaches to each side


def starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Return where tiles begin along an axis: as few as cover it and overlap by `overlap` pixels or more."""
    count = max(-(-(length - overlap) // (size - overlap)), 1)
    return [place * max(length - size, 0) // max(count - 1, 1) for place in range(count)]


def draw(places: Sequence[tuple[int, int]], most: int | None, key: str) -> list[tuple[int, int]]:
    """Return up to `most` of the places in their order, drawn by a hash of `key` and place, the same at each start."""
    if most is None or len(places) <= most:
        return list(places)
    ranked = sorted(places, key=lambda place: hashlib.sha256(f"{key} {place[0]} {place[1]}".encode()).digest())
    return sorted(ranked[:most])


@dataclass(frozen=True)
class Resolution:
    """The resolution of tiles: a level, and what its pixels are reduced by.

    factor  (row, column) pixels of the level a pixel of a tile; (1, 1): as stored
    shape   (rows, columns) of the picture in pixels of tiles
    step    (row, column) pixels of the finest level a pixel of a tile
    mpp     (row, column) micrometres a pixel of a tile; None if unknown
    """

    level: int
    factor: tuple[float, float]
    shape: tuple[int, int]
    step: tuple[float, float]
    mpp: tuple[float, float] | None


def resolution(image: RegionImage, config: TileConfig) -> Resolution:
    """Return the resolution that `tiles.mpp` asks for; raise RejectedSeries if the picture has none so fine.

    A level within `tiles.mpp_tolerance` of it is taken as stored; else the next finer one is reduced.
    """
    mpp = image.mpp or ((config.assumed_mpp, config.assumed_mpp) if config.assumed_mpp else None)
    finest = image.levels[0]
    steps = [(finest[0] / rows, finest[1] / columns) for rows, columns in image.levels]
    if config.mpp is None:
        return Resolution(0, (1.0, 1.0), finest, (1.0, 1.0), mpp)
    if mpp is None:
        raise RejectedSeries("does not say its micrometres a pixel; tiles.assumed_mpp does, or leave out tiles.mpp")
    wanted = config.mpp / mpp[0], config.mpp / mpp[1]
    ratios = [(wanted[0] / step[0], wanted[1] / step[1]) for step in steps]
    low, high = 1 / (1 + config.mpp_tolerance), 1 + config.mpp_tolerance
    stored = [level for level, ratio in enumerate(ratios) if low <= min(ratio) and max(ratio) <= high]
    if stored:
        level = min(stored, key=lambda one: max(abs(ratio - 1) for ratio in ratios[one]))
        lengths = mpp[0] * steps[level][0], mpp[1] * steps[level][1]
        return Resolution(level, (1.0, 1.0), image.levels[level], steps[level], lengths)
    finer = [level for level, ratio in enumerate(ratios) if min(ratio) >= 1]
    if not finer:
        raise RejectedSeries(f"{max(mpp):.4g} µm a pixel are coarser than tiles.mpp={config.mpp:g}")
    level = max(finer, key=lambda one: steps[one])
    factor = ratios[level]
    shape = tuple(max(int(length / part), 1) for length, part in zip(image.levels[level], factor))
    return Resolution(level, factor, (shape[0], shape[1]), wanted, (config.mpp, config.mpp))


def read(image: RegionImage, at: Resolution, row: int, column: int, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values and alpha of a tile that begins at (row, column) in pixels of tiles; see `RegionImage.read`.

    Values are reduced by an antialiased cubic kernel that reaches beyond the tile's edge. Tiles of pictures smaller
    than `size` are as small.
    """
    rows, columns = (min(size, length) for length in at.shape)
    if at.factor == (1.0, 1.0):
        return image.read(at.level, row, column, rows, columns)
    low, high, begins, ends = [], [], [], []
    for first, count, factor, length in zip((row, column), (rows, columns), at.factor, image.levels[at.level]):
        begin, end = first * factor, min((first + count) * factor, length)
        margin = _SUPPORT * factor + 1
        low.append(max(int(begin - margin), 0))
        high.append(min(int(np.ceil(end + margin)), length))
        begins.append(begin - low[-1])
        ends.append(end - low[-1])
    values, alpha = image.read(at.level, low[0], low[1], high[0] - low[0], high[1] - low[1])
    box = begins[1], begins[0], ends[1], ends[0]
    planes = values[..., None] if values.ndim == 2 else values
    fitted = np.stack([_reduced(plane, (columns, rows), box) for plane in np.moveaxis(planes, -1, 0)], axis=-1)
    return (
        fitted[..., 0] if values.ndim == 2 else fitted,
        None if alpha is None else _reduced(alpha, (columns, rows), box),
    )


def _reduced(plane: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    floats = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    smooth = np.asarray(floats.resize(size, Image.Resampling.BICUBIC, box=box))
    smooth = np.clip(smooth, plane.min(), plane.max())  # cubic overshoots at edges
    return (np.rint(smooth) if plane.dtype.kind in "iu" else smooth).astype(plane.dtype)


@dataclass(frozen=True)
class Overview:
    """A small image of a picture.

    saturation  (rows, columns) uint8, 0…255 for 0…1, 0 of nearly black pixels; None of grey pictures
    sample      (n,) or (n, 3) values of evenly spaced pixels, up to 4 million
    step        (row, column) pixels of the finest level a pixel of `saturation`
    """

    saturation: np.ndarray | None
    sample: np.ndarray
    step: tuple[float, float]

    @property
    def threshold(self) -> float:
        """Otsu's threshold of the saturation, in 0…1, between 0.03 and 0.15."""
        assert self.saturation is not None
        return min(max(_otsu(self.saturation), _OTSU[0]), _OTSU[1]) / 255

    def share(self, tissue: np.ndarray, at: Resolution, row: int, column: int, size: int) -> float:
        """Return the share of a tile that is tissue; `tissue`: where `saturation` lies above the threshold."""
        spans = []
        for first, step, own, length, whole in zip((row, column), at.step, self.step, tissue.shape, at.shape):
            start = min(int(first * step / own), length - 1)
            stop = max(int(np.ceil((first + min(size, whole)) * step / own)), start + 1)
            spans.append(slice(start, stop))
        return float(tissue[spans[0], spans[1]].mean())


def overview(image: RegionImage) -> Overview:
    """Return a small image of a picture, read block by block from the coarsest level that is large enough."""
    large = [level for level, shape in enumerate(image.levels) if max(shape) >= _LEAST_OVERVIEW]
    level = max(large, default=0)
    rows, columns = image.levels[level]
    by = max(-(-max(rows, columns) // _OVERVIEW), 1)
    hued = image.colour and image.dtype == np.uint8
    saturation = np.zeros((-(-rows // by), -(-columns // by)), np.uint8) if hued else None
    samples = []
    side = _BLOCK // by * by or by
    for row in range(0, rows, side):
        for column in range(0, columns, side):
            values, _ = image.read(level, row, column, min(side, rows - row), min(side, columns - column))
            samples.append(values[:: 2 * by, :: 2 * by].reshape(-1, *values.shape[2:]))
            if saturation is not None:
                means = _means(values, by)
                part = saturation[row // by : row // by + len(means), column // by : column // by + means.shape[1]]
                part[:] = _saturation(means)
    step = image.levels[0][0] / rows * by, image.levels[0][1] / columns * by
    return Overview(saturation, np.concatenate(samples), step)


def places(shape: tuple[int, int], config: TileConfig) -> Iterator[tuple[int, int]]:
    """Yield where the tiles of a picture of (rows, columns) begin, row by row."""
    assert config.size is not None
    for row in starts(shape[0], config.size, config.overlap):
        for column in starts(shape[1], config.size, config.overlap):
            yield row, column


def count(shape: tuple[int, int], config: TileConfig) -> int:
    """Return how many `places` there are."""
    assert config.size is not None
    down, across = (max(-(-(n - config.overlap) // (config.size - config.overlap)), 1) for n in shape)
    return down * across


def _means(values: np.ndarray, by: int) -> np.ndarray:
    """Return the means of blocks of `by` × `by` pixels of (H, W, 3); those at the far edges may be smaller."""
    if by == 1:
        return values
    total = values.astype(np.float32)
    for axis in (0, 1):
        length = total.shape[axis]
        ends = np.arange(0, length, by)
        total = np.add.reduceat(total, ends, axis=axis)
        counts = np.diff([*ends, length]).astype(np.float32)
        total /= counts[:, None, None] if axis == 0 else counts[:, None]
    return total


def _saturation(colours: np.ndarray) -> np.ndarray:
    largest, least = (reduce(colours, axis=-1).astype(np.float32) for reduce in (np.max, np.min))
    return np.where(largest > _DARK, np.rint(255 * (largest - least) / np.maximum(largest, 1)), 0).astype(np.uint8)


def _otsu(values: np.ndarray) -> int:
    """Return the value of uint8 up to which pixels are of the lower class (Otsu 1979: largest variance between).

    Of several values that part them alike, the one in the middle.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    between = np.nan_to_num(between)
    return int(np.flatnonzero(between >= between.max() * (1 - 1e-9)).mean())
