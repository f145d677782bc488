"""PNG files read by hand: checksums of all chunks, and colours of 16 bits, of which Pillow keeps 8."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7 (PNG specification, 8.1): first row, first column, step of rows, step of columns
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


class PngError(ValueError):
    """A PNG file that is damaged; what is wrong with it."""


@dataclass(frozen=True)
class PngHeader:
    """IHDR: width and height in pixels, bits of a channel, colour type, whether rows come in seven passes."""

    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool

    @property
    def deep_colour(self) -> bool:
        """Whether it has several channels (colour or alpha) of 16 bits."""
        return self.bits == 16 and self.colour in (2, 4, 6)


def check(content: bytes) -> PngHeader:
    """Return the header of a PNG whose chunks are whole. Raises PngError for a cut file or a wrong checksum."""
    header = None
    for kind, body in _chunks(content):
        if kind == b"IHDR" and header is None:
            if len(body) != 13 or body[9] not in _CHANNELS:
                raise PngError("its header is damaged")
            width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            header = PngHeader(width, height, bits, colour, bool(interlace))
    if header is None:
        raise PngError("it has no header")
    return header


def transparent(content: bytes) -> tuple[int, ...] | None:
    """Return the grey or red, green and blue value that tRNS makes transparent; None where there is none."""
    for kind, body in _chunks(content):
        if kind == b"tRNS":
            return struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2])
    return None


def deep_pixels(content: bytes, header: PngHeader) -> np.ndarray:
    """Return (H, W, C) uint16 of a PNG with channels of 16 bits. Raises PngError."""
    channels, packed = _CHANNELS[header.colour], b"".join(body for kind, body in _chunks(content) if kind == b"IDAT")
    passes = _PASSES if header.interlaced else ((0, 0, 1, 1),)
    shapes = [
        (-(-(header.height - row) // down), -(-(header.width - column) // right)) for row, column, down, right in passes
    ]
    shapes = [(height, width) if min(height, width) > 0 else (0, 0) for height, width in shapes]
    expected = sum(height * (1 + width * channels * 2) for height, width in shapes)
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, expected + 1)
    except zlib.error as error:
        raise PngError("its compressed pixels are damaged") from error
    if len(raw) != expected:
        raise PngError(f"{len(raw)} bytes of pixels, expected {expected}")
    out = np.empty((header.height, header.width, channels), np.uint16)
    start = 0
    for (row, column, down, right), (height, width) in zip(passes, shapes):
        length = height * (1 + width * channels * 2)
        if length:
            lines = np.frombuffer(raw, np.uint8, length, start).reshape(height, -1)
            values = _unfiltered(lines[:, 0], lines[:, 1:].reshape(height, width, channels * 2))
            out[row::down, column::right] = values.view(">u2")
        start += length
    return out


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of every chunk up to IEND. Raises PngError."""
    if content[:8] != SIGNATURE:
        raise PngError("it has no PNG signature")
    view, at, kind = memoryview(content), 8, b""
    while kind != b"IEND":
        if at + 12 > len(view):
            raise PngError("it is cut short")
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 8 + length
        if end + 4 > len(view):
            raise PngError("it is cut short")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise PngError("a checksum is wrong")
        yield kind, bytes(view[at + 8 : end])
        at = end + 4


def _unfiltered(filters: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Undo the filters (PNG specification, 9.2) of (H,) types and (H, W, B) bytes, B of them a pixel.

    A pixel needs those to its left, above it and above left, so that all pixels of one diagonal are computed at once.
    """
    if filters.max(initial=0) > 4:
        raise PngError("an unknown filter")
    height, width, size = lines.shape
    out = np.zeros((height + 1, width + 1, size), np.uint8)  # a row and a column of zeros come first
    rows = np.arange(height)
    for diagonal in range(height + width - 1):
        row = rows[max(diagonal - width + 1, 0) : diagonal + 1]
        column = diagonal - row
        left, above, corner = (
            out[row + 1, column].astype(np.int16),
            out[row, column + 1].astype(np.int16),
            out[row, column].astype(np.int16),
        )
        kind = filters[row][:, None]
        estimate = np.where(kind == 1, left, 0) + np.where(kind == 2, above, 0)
        estimate += np.where(kind == 3, (left + above) // 2, 0)
        if (kind == 4).any():
            to_left, to_above = abs(above - corner), abs(left - corner)
            to_corner = abs(left + above - 2 * corner)
            paeth = np.where(
                (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
            )
            estimate += np.where(kind == 4, paeth, 0)
        out[row + 1, column + 1] = lines[row, column] + estimate.astype(np.uint8)
    return np.ascontiguousarray(out[1:, 1:])
