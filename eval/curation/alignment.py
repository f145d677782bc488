"""How alike two slices are once one is laid onto the other: the best correlation of their details.

The body's outline moves where an image is cropped or its edge lies in another grey. So one thumbnail is shifted and
stretched along both axes, by Gauss-Newton steps from where they lie (Lucas and Kanade; Baker and Matthews 2004).
"""

from __future__ import annotations

import numpy as np

from eval.curation.descriptors import SIDE, details

_STEPS = 6
_MOST = 3.0  # values by which a thumbnail's middle and its edges may move
_HOPELESS, _SAME = 0.4, 0.98
_RIDGE = 1e-3 * SIDE
_ROWS, _COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[:SIDE, :SIDE])
_UNIT = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)  # −1…1 along an axis


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (N,) float32, −1…1, of N pairs of thumbnails (N, SIDE, SIDE) uint8; 1 is the same image.

    Pairs that agree well where they lie, or hardly at all, are not moved: the first need not, the others would not.
    """
    fixed, moved = _standard(details(first)), _standard(details(second))
    score = (fixed * moved).mean(axis=(1, 2))
    between = np.flatnonzero((score >= _HOPELESS) & (score < _SAME))
    if len(between):
        score[between] = np.maximum(score[between], _moved(fixed[between], moved[between]))
    return score


def _moved(fixed: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return the best correlation of pairs of images on the way to where they fit best."""
    along, across = np.gradient(fixed, axis=(1, 2))
    slopes = np.stack([along, along * _UNIT[:, None], across, across * _UNIT], axis=-1).reshape(len(fixed), -1, 4)
    transposed = slopes.transpose(0, 2, 1)
    normal = transposed @ slopes + _RIDGE * np.eye(4, dtype=np.float32)
    shifts = np.zeros((len(fixed), 4), np.float32)
    best, laid = np.full(len(fixed), -1, np.float32), moved
    for _ in range(_STEPS):
        rest = (laid - fixed).reshape(len(fixed), -1, 1)
        shifts = np.clip(shifts - np.linalg.solve(normal, transposed @ rest)[..., 0], -_MOST, _MOST)
        laid = _laid(moved, shifts)
        best = np.maximum(best, _correlation(fixed, laid))
    return best


def _standard(images: np.ndarray) -> np.ndarray:
    """Return images of mean 0 and standard deviation 1."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-6)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlations of pairs, the first of each standardised already."""
    return (first * _standard(second)).mean(axis=(1, 2))


def _laid(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return images read at shifted places, linearly; shifts (N, 4): rows, their stretch, columns, their stretch."""
    each = shifts[:, :, None, None]
    row, row_part = _places(_ROWS + each[:, 0] + each[:, 1] * _UNIT[:, None])
    column, column_part = _places(_COLUMNS + each[:, 2] + each[:, 3] * _UNIT)
    number = np.arange(len(images))[:, None, None]
    upper = images[number, row, column] * (1 - column_part) + images[number, row, column + 1] * column_part
    lower = images[number, row + 1, column] * (1 - column_part) + images[number, row + 1, column + 1] * column_part
    return upper * (1 - row_part) + lower * row_part


def _places(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = np.clip(at, 0, SIDE - 1.001)
    whole = inside.astype(np.int64)
    return whole, inside - whole
