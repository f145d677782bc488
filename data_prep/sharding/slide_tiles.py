"""The tiles of a file that is read by region: resolution, tissue and draw as the settings of `tiles` say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from data_prep.config import ImagesConfig
from data_prep.volumes import pictures, slides, tiles
from data_prep.volumes.volume import RejectedSeries

_MOST = 4_000_000  # tiles of a picture
_OF_PICTURES = ("longest", "grid.in_plane_mm", "grid.size")


@dataclass(frozen=True)
class SlideTile:
    """One tile.

    ends     the values that become 0 and 1, of the whole picture
    spacing  (row, column) in mm; None if unknown
    place    (row, column) of its first pixel in pixels of the finest resolution
    """

    picture: pictures.DecodedPicture
    ends: tuple[float, float]
    spacing: tuple[float, float] | None
    place: tuple[int, int]


def read(
    path: str, config: ImagesConfig, key: str, notes: dict[str, object], left_out: Counter[str]
) -> Iterator[SlideTile]:
    """Yield the tiles with enough tissue, row by row; those that are empty all the same are among them.

    key       what the draw depends on: the hashed id of the series
    notes     filled with what was read and decided, for the manifest
    left_out  filled with counts of tiles: tiles_without_tissue, tiles_not_drawn

    Raises RejectedSeries, UnreadableError.
    """
    for name, value in zip(_OF_PICTURES, (config.longest, config.grid.in_plane_mm, config.grid.size)):
        if value is not None:
            raise RejectedSeries(f"read by region: tiles.mpp and tiles.size give its size, leave out {name}")
    with slides.opened(path) as planes:
        for number, image in enumerate(islice(planes, 0, None, config.frame_stride)):
            notes.update(image.notes)
            yield from _of_image(image, config, f"{key} {number}" if number else key, notes, left_out)


def _of_image(
    image: slides.RegionImage, config: ImagesConfig, key: str, notes: dict[str, object], left_out: Counter[str]
) -> Iterator[SlideTile]:
    rules = pictures.Rules(config.alpha, config.colour, config.range)
    if (size := config.tiles.size) is None:
        rows, columns = image.levels[0]
        raise RejectedSeries(f"a whole slide of {rows} × {columns} pixels; tiles.size=N cuts it into tiles")
    at = tiles.resolution(image, config.tiles)
    if image.mpp is None and at.mpp is not None:
        notes["mpp"] = f"{at.mpp[0]:.4g} µm by tiles.assumed_mpp"
    elif at.mpp is not None:
        notes["mpp"] = f"{at.mpp[0]:.4g} µm"
    hued = image.colour and image.dtype.itemsize == 1 and config.tiles.min_tissue > 0
    fixed = image.dtype.name == "uint8" and config.range != "robust"
    if (count := tiles.count(at.shape, config.tiles)) > _MOST:
        raise RejectedSeries(f"{count:,} tiles, more than {_MOST:,}; larger tiles.size or tiles.mpp make fewer")
    ends, every = (0.0, 255.0), list(tiles.places(at.shape, config.tiles))
    if hued or not fixed:
        small = tiles.overview(image)
        if not fixed:
            ends = pictures.ends(small.sample, rules)
        if hued:
            every = _with_tissue(every, small, at, config, notes, left_out)
    drawn = tiles.draw(every, config.tiles.most, key)
    left_out["tiles_not_drawn"] += len(every) - len(drawn)
    spacing = None if at.mpp is None else (at.mpp[0] / 1000, at.mpp[1] / 1000)
    for row, column in drawn:
        values, alpha = tiles.read(image, at, row, column, size)
        picture = pictures.ruled(values, alpha, {}, rules, coloured=image.colour)
        yield SlideTile(picture, ends, spacing, (round(row * at.step[0]), round(column * at.step[1])))


def _with_tissue(
    every: list[tuple[int, int]],
    small: tiles.Overview,
    at: tiles.Resolution,
    config: ImagesConfig,
    notes: dict[str, object],
    left_out: Counter[str],
) -> list[tuple[int, int]]:
    """Return the places whose tiles hold enough tissue; note the threshold, count the others."""
    assert small.saturation is not None and config.tiles.size is not None
    given = config.tiles.tissue_above
    threshold = small.threshold if given is None else given
    notes["tissue"] = f"saturation above {threshold:.3f}" + (" (Otsu's, within 0.03 and 0.15)" if given is None else "")
    tissue, size = small.saturation > threshold * 255, config.tiles.size
    kept = [place for place in every if small.share(tissue, at, *place, size) >= config.tiles.min_tissue]
    left_out["tiles_without_tissue"] += len(every) - len(kept)
    return kept
