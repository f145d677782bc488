"""TIFF read by region with tifffile: tiles or strips, pyramids, stacks, OME-TIFF; 8 to 32 bits, grey or colour.

Every plane of the file's first image (OME: Image 0) is a picture: focal planes, time points, channels. Further images
of the file are not read: in files that scanners wrote they are the label and photographs of the slide.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_prep.volumes.volume import RejectedSeries

_CACHE = 64 << 20  # bytes of decoded tiles that are kept
_PIECE = 256 << 20  # most bytes of a tile or compressed strip, decoded
_PRINT = 10.0  # micrometres a pixel: larger ones in the tags of TIFF are resolutions of screens and printers
_UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_TAG_UNITS = {2: 25400.0, 3: 10000.0}  # ResolutionUnit: inch, centimetre → micrometres


def check_whole(path: str) -> None:
    """Raise RejectedSeries for a TIFF, or a slide stored as one, that ends before its pixels do; else do nothing."""
    with open(path, "rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return
        size = file.seek(0, 2)
    with _file(path) as tiff:
        for page in tiff.pages:
            inner = page.pages if getattr(page, "pages", None) is not None else []
            for one in (page, *inner):
                if any(start + count > size for start, count in zip(one.dataoffsets, one.databytecounts)):
                    raise RejectedSeries("cut short: the file ends before its pixels do")


@contextmanager
def opened(path: str) -> Iterator[Iterator[TiffPlane]]:
    """Open a TIFF and give its planes. Raises RejectedSeries, and whatever tifffile raises for damage."""
    with _file(path) as tiff:
        yield _planes(tiff)


@contextmanager
def _file(path: str) -> Iterator[Any]:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of damage is refused in a line
    with tifffile.TiffFile(path) as tiff:
        yield tiff


def _planes(tiff: Any) -> Iterator[TiffPlane]:
    first = tiff.series[0]
    spatial = first.axes[-3:] if first.axes[-3:] in ("YXS", "SYX") else first.axes[-2:]
    if spatial not in ("YX", "YXS", "SYX"):
        raise RejectedSeries(f"a TIFF with the axes {first.axes}; rows and columns have to come last")
    count = int(np.prod(first.shape[: -len(spatial)], dtype=np.int64))
    if len(first.pages) != count:
        raise RejectedSeries(f"{count} planes in {len(first.pages)} pages of TIFF; save each plane as a page")
    mpp, notes = _mpp(tiff, first), dict[str, object]()
    if count > 1:
        notes["planes"] = " ".join(f"{axis}={n}" for axis, n in zip(first.axes, first.shape[: -len(spatial)]))
    if tiff.is_ome and len(tiff.series) > 1:
        notes["images_not_read"] = len(tiff.series) - 1
    for place in range(count):
        pages = [level.pages[place] for level in first.levels]
        if None in pages:
            raise RejectedSeries("a plane of its OME description is missing from the file")
        yield TiffPlane(tiff, pages, mpp, notes if place == 0 else {})


def _mpp(tiff: Any, series: Any) -> tuple[float, float] | None:
    """Return (row, column) micrometres a pixel as OME, ImageJ or the tags of TIFF say; None if none does."""
    import tifffile

    page = series.keyframe
    if tiff.is_ome:
        images = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (images[0] if isinstance(images, (list, tuple)) else images)["Pixels"]
        sizes = [(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "YX"]
        return _lengths([float(size) * _UNITS[unit] for size, unit in sizes if size and unit in _UNITS])
    per_unit = [page.tags.valueof(name) for name in ("YResolution", "XResolution")]
    if any(value is None or 0 in value for value in per_unit):
        return None
    steps = [parts[1] / parts[0] for parts in per_unit]
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
        return _lengths([step * _UNITS[unit] for step in steps]) if unit in _UNITS else None
    unit_um = _TAG_UNITS.get(int(page.tags.valueof("ResolutionUnit", 1)))
    lengths = None if unit_um is None else _lengths([step * unit_um for step in steps])
    return lengths if lengths and max(lengths) <= _PRINT else None


def _lengths(found: list[float]) -> tuple[float, float] | None:
    return (found[0], found[1]) if len(found) == 2 and all(0 < length < 1e4 for length in found) else None


def _piece(frame: Any) -> tuple[int, int]:
    """Return (rows, columns) of a tile or strip."""
    if frame.is_tiled:
        return int(frame.tilelength), int(frame.tilewidth)
    return min(int(frame.rowsperstrip), int(frame.imagelength)), int(frame.imagewidth)


def _grid(frame: Any) -> tuple[int, int, int]:
    """Return how many tiles or strips a page has: (of separate channels, down, across)."""
    high, wide = _piece(frame)
    planes = int(frame.samplesperpixel) if frame.planarconfig == 2 else 1
    return planes, -(-int(frame.imagelength) // high), -(-int(frame.imagewidth) // wide)


class TiffPlane:
    """One plane of a TIFF; see `slides.RegionImage`."""

    def __init__(self, tiff: Any, pages: list[Any], mpp: tuple[float, float] | None, notes: dict[str, object]) -> None:
        self._file, self._pages, self.mpp, self.notes = tiff.filehandle, pages, mpp, notes
        self._order = tiff.byteorder
        frame = pages[0].keyframe
        self.levels: Sequence[tuple[int, int]] = [
            (int(page.keyframe.imagelength), int(page.keyframe.imagewidth)) for page in pages
        ]
        self.dtype, samples = np.dtype(frame.dtype).newbyteorder("="), frame.samplesperpixel
        photometric = getattr(frame.photometric, "name", "unknown")
        known = photometric in ("MINISBLACK", "MINISWHITE") if samples == 1 else photometric in ("RGB", "YCBCR")
        if not known or samples not in (1, 3, 4):
            raise RejectedSeries(
                f"a TIFF of {samples} channels ({photometric}); save it in grey or red, green and blue"
            )
        if self.dtype.kind not in "iuf" or self.dtype.itemsize > 4 or frame.bitspersample % 8 or frame.imagedepth > 1:
            raise RejectedSeries(f"a TIFF of {frame.bitspersample} bits a value; 8, 16 and 32 are read")
        for page in pages:
            if len(page.dataoffsets) < np.prod(_grid(page.keyframe), dtype=object):
                raise RejectedSeries("damaged: it lists fewer tiles or strips than its size needs")
        if photometric == "YCBCR" and getattr(frame.compression, "name", "") not in ("JPEG", "OJPEG"):
            raise RejectedSeries("a TIFF in YCbCr without JPEG; save it in red, green and blue")
        if photometric == "MINISWHITE" and self.dtype.kind != "u":
            raise RejectedSeries("a TIFF of signed values whose 0 is white; save it with a 0 that is black")
        self.colour, self._white = samples > 1, photometric == "MINISWHITE"
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
        frame = self._pages[level].keyframe
        samples = frame.samplesperpixel
        planes, down, across = _grid(frame)
        out = np.zeros((rows, columns, samples), self.dtype)
        high, wide = _piece(frame)
        plain = not frame.is_tiled and frame.compression == 1 and frame.predictor == 1
        if not plain and high * wide * (samples // planes) * self.dtype.itemsize > _PIECE:
            raise RejectedSeries(
                f"stored in pieces of {high} × {wide} pixels, too large to read by region; save it tiled"
            )
        for plane in range(planes):
            target = out[..., plane : plane + 1] if planes > 1 else out
            for line in range(row // high, (row + rows - 1) // high + 1):
                top, end = max(row, line * high), min(row + rows, (line + 1) * high)
                for place in range(column // wide, (column + columns - 1) // wide + 1):
                    left, right = max(column, place * wide), min(column + columns, (place + 1) * wide)
                    index = (plane * down + line) * across + place
                    if plain:
                        piece = self._rows(level, index, top - line * high, end - top)
                    else:
                        piece = self._segment(level, index)[top - line * high : end - line * high]
                    piece = piece[:, left - place * wide : right - place * wide]
                    target[top - row : end - row, left - column : right - column] = piece
        if self._white:
            out = np.iinfo(self.dtype).max - out
        if samples == 1:
            return out[..., 0], None
        return np.ascontiguousarray(out[..., :3]), (out[..., 3] if samples == 4 else None)

    def _rows(self, level: int, index: int, first: int, count: int) -> np.ndarray:
        """Return (count, columns, samples) rows of an uncompressed strip, the others unread."""
        page = self._pages[level]
        frame = page.keyframe
        samples = 1 if frame.planarconfig == 2 else frame.samplesperpixel
        length = frame.imagewidth * samples * self.dtype.itemsize
        self._file.seek(page.dataoffsets[index] + first * length)
        stored = np.frombuffer(self._file.read(count * length), self.dtype.newbyteorder(self._order))
        return stored.reshape(count, frame.imagewidth, samples)

    def _segment(self, level: int, index: int) -> np.ndarray:
        """Return a decoded tile or strip (rows, columns, samples); a tile that was not stored is 0."""
        if (level, index) in self._kept:
            self._kept.move_to_end((level, index))
            return self._kept[level, index]
        page = self._pages[level]
        frame = page.keyframe
        self._file.seek(page.dataoffsets[index])
        data = self._file.read(page.databytecounts[index])
        segment, _, shape = frame.decode(data, index, jpegtables=frame.jpegtables)
        high, wide = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (shape[1], frame.imagewidth)
        decoded = np.zeros((high, wide, 1 if frame.planarconfig == 2 else frame.samplesperpixel), self.dtype)
        if segment is not None:
            piece = segment[0][:high, :wide]
            decoded[: piece.shape[0], : piece.shape[1]] = piece
        self._kept[level, index] = decoded
        self._bytes += decoded.nbytes
        while self._bytes > _CACHE and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return decoded
