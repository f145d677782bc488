"""What a slice looks like, whatever its window: a picture of 40 × 40 values around the body, and a 256-bit hash.

The body is cut out by its outline, so that a shift or a border changes nothing; CT is clipped to soft tissue, which
most windows show, so that a re-windowed slice stays what it was. The hash has the signs of low frequencies (DCT).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn

SIDE = 40  # of the picture, in values
BYTES = 32  # of a hash
_FREQUENCIES = 16  # along each axis: signs of the lowest ones
_TISSUE_HU = (-150.0, 250.0)
_SKIN_HU = -100.0
_WORKING = 256  # pixels along the longer side of the image in which the body is looked for
_PART = 0.05  # of the area of the largest part of the body
_FLAT = 1e-3  # spread of details below which a slice shows nothing to recognise it by


@dataclass(frozen=True)
class Descriptor:
    """One slice.

    thumbnail  (SIDE, SIDE) uint8
    hash       (BYTES,) uint8
    plain      shows nothing to recognise it by: all such slices look alike, which makes none a duplicate
    """

    thumbnail: np.ndarray
    hash: np.ndarray
    plain: bool


def describe(plane: np.ndarray, hounsfield: bool) -> Descriptor:
    """Return the descriptor of one (H, W) image.

    hounsfield  its values are HU; other values mean nothing but by their order and differences
    """
    image = _working(plane)
    low, high, edge = _TISSUE_HU + (_SKIN_HU,) if hounsfield else _scale(image)
    row0, row1, column0, column1 = _outline(image > edge)
    body = np.clip(image[row0:row1, column0:column1], low, high)
    small = np.asarray(Image.fromarray(body).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    thumbnail = np.rint((small - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    detail = details(thumbnail[None])[0]
    bits = dctn(detail, norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel() > 0
    return Descriptor(thumbnail, np.packbits(bits), bool(detail.std() < _FLAT))


def details(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N, SIDE, SIDE) float32 of thumbnails without noise and without what changes slowly, about −1…1."""
    values = thumbnails.astype(np.float32) / 255
    fine = ndimage.gaussian_filter(values, (0, 1, 1))
    return fine - ndimage.gaussian_filter(fine, (0, 4, 4))


def _working(plane: np.ndarray) -> np.ndarray:
    """Return the image as float32, no more than _WORKING pixels long: means of pixels."""
    factor = -(-max(plane.shape) // _WORKING)
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.reduce(factor) if factor > 1 else image)


def _scale(image: np.ndarray) -> tuple[float, float, float]:
    """Return (lowest, highest, edge of the body) of an image whose scale says nothing, unchanged by a linear map."""
    edge = _otsu(image)
    ground = min(float(np.percentile(image, 2)), edge)
    body = image[image > edge]
    if not len(body):
        return ground, ground + 1.0, edge
    high = float(np.percentile(body, 99))
    return ground, max(high, ground + 1e-6), ground + 0.2 * (float(np.median(body)) - ground)


def _otsu(image: np.ndarray) -> float:
    """Return the value that divides an image into two classes of least spread (Otsu 1979)."""
    counts, edges = np.histogram(image, 64)
    centres = (edges[:-1] + edges[1:]) / 2
    below, moment = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    between = np.zeros(len(counts))
    inside = (below > 0) & (above > 0)
    between[inside] = (moment[-1] * below - moment * below[-1])[inside] ** 2 / (below * above)[inside]
    return float(edges[1:][int(np.argmax(between))])


def _outline(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return (row0, row1, column0, column1) around the parts of a mask; else of the whole image.

    Thin lines and parts below _PART of the largest one are left out. Not the largest alone: of two shoulders of about
    one size it would be now one, now the other, and whether an arm touches the trunk depends on the last grey.
    """
    opened = ndimage.binary_opening(mask, np.ones((3, 3)))
    parts, count = ndimage.label(opened if opened.any() else mask)
    if not count:
        return 0, mask.shape[0], 0, mask.shape[1]
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    body = (areas >= _PART * areas.max())[parts] & (parts > 0)
    ends: list[int] = []
    for axis in (1, 0):
        lengths = body.sum(axis=axis)
        places = np.flatnonzero(lengths >= 0.05 * lengths.max())
        ends += [int(places[0]), int(places[-1]) + 1]
    return ends[0], ends[1], ends[2], ends[3]
