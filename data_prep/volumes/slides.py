"""Images read by region: whole slides by OpenSlide, tiled and very large TIFF by tifffile, if they are installed.

    .svs .svslide .ndpi .scn .mrxs .bif .czi, DICOM (VL Whole Slide Microscopy)    OpenSlide
    .tif .tiff that OpenSlide knows as a scanner's (Aperio, Leica, Philips, Trestle, Ventana)    OpenSlide
    other .tif .tiff whose pixels lie in tiles, OME-TIFF too, or that are larger than Pillow reads    tifffile

Labels and overview photographs of slides, which may show a name, are never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, TiffImagePlugin

from data_prep.volumes import zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries

SUFFIXES = (".svs", ".svslide", ".ndpi", ".scn", ".mrxs", ".bif", ".czi")
TIFF = (".tif", ".tiff")
_MOST = 4 << 30  # bytes of a TIFF in a zip archive
_WIDTH, _LENGTH, _TILE_WIDTH = 256, 257, 322  # tags of TIFF
_MISSING = "read by region, and OpenSlide or tifffile is not installed; pip install 'meddap[slides]'"


class RegionImage(Protocol):
    """One picture that is read by region.

    levels  (rows, columns) of each resolution, the finest first
    mpp     (row, column) micrometres a pixel of the finest level; None if the file does not say
    dtype   of the values
    colour  whether `read` returns red, green and blue
    notes   for the manifest
    """

    levels: Sequence[tuple[int, int]]
    mpp: tuple[float, float] | None
    dtype: np.dtype
    colour: bool
    notes: dict[str, object]

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (rows, columns) values or (rows, columns, 3) in colour, and alpha (rows, columns) or None.

        The region lies within the level. Raises RejectedSeries for damage, UnreadableError.
        """
        ...


def is_slide(name: str) -> bool:
    """Return whether a file's name has the ending of a whole slide."""
    return name.lower().endswith(SUFFIXES)


def by_region(path: str, tiled: bool) -> bool:
    """Return whether a file is read by region: a whole slide, or a TIFF as the module says if `tiled` (tiles.size)."""
    if is_slide(path):
        return True
    if not tiled or not path.lower().endswith(TIFF):
        return False
    try:
        with zips.open_whole(path, _MOST) as file:
            start = file.read(8)
            if start[2:3] == b"\x2b" or start[3:4] == b"\x2b":  # BigTIFF
                start += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            pixels = int(tags.get(_WIDTH, 0)) * int(tags.get(_LENGTH, 0))
            return _TILE_WIDTH in tags or pixels > 2 * (Image.MAX_IMAGE_PIXELS or pixels)
    except Exception as error:  # hostile bytes raise anything; who reads the picture says what is wrong
        unless_trouble(error)
        return False


@contextmanager
def opened(path: str) -> Iterator[Iterator[RegionImage]]:
    """Open a file and give its pictures: the slide, or the planes of a TIFF. Raises RejectedSeries, UnreadableError."""
    if zips.split(path) is not None:
        raise RejectedSeries("read by region, which a zip archive does not allow; unpack it")
    try:
        import openslide

        from data_prep.volumes import region_tiff
    except (ImportError, OSError) as error:  # OSError: of the library that OpenSlide's Python package loads
        raise RejectedSeries(_MISSING) from error
    try:
        region_tiff.check_whole(path)
        vendor = openslide.OpenSlide.detect_format(path)
        if path.lower().endswith(TIFF) and vendor in (None, "generic-tiff"):
            with region_tiff.opened(path) as planes:
                yield planes
        elif vendor is None:
            raise RejectedSeries("not a whole slide that OpenSlide reads, or damaged")
        else:
            with openslide.OpenSlide(path) as slide:
                yield iter([_Slide(slide)])
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(f"damaged or cut short: a region cannot be read ({type(error).__name__})") from error


class _Slide:
    """A whole slide by OpenSlide, 8 bits in colour; what was not scanned is white."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        self.levels: Sequence[tuple[int, int]] = [(rows, columns) for columns, rows in slide.level_dimensions]
        self.dtype, self.colour = np.dtype(np.uint8), True
        self.notes: dict[str, object] = {}
        lengths = (_positive(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
        row, column = lengths
        self.mpp = None if row is None or column is None else (row, column)

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
        step = self._slide.level_downsamples[level]
        place = round(column * step), round(row * step)  # openslide counts in pixels of the finest level
        pixels = np.asarray(self._slide.read_region(place, level, (columns, rows)))
        alpha = pixels[..., 3:]
        if (alpha < 255).any():
            part = alpha / np.float32(255)
            return np.rint(pixels[..., :3] * part + 255 * (1 - part)).astype(np.uint8), None
        return np.ascontiguousarray(pixels[..., :3]), None


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return value if 0 < value < 1e4 else None


def companions(name: str, names: Sequence[str]) -> list[str]:
    """Return those of `names` that belong to a slide in several files: the folder beside a .mrxs."""
    if not name.lower().endswith(".mrxs"):
        return []
    folder = str(Path(name).with_suffix("")) + "/"
    return [other for other in names if other.startswith(folder)]
