"""Crops on a CPU: each row of a crop is the weighted sum of the few rows of the slice that lie under its kernel.

Whole matrices of weights (resize.weights) would multiply by zero nineteen times of twenty there. What sums weighted
rows fastest on a core is PyTorch's embedding bag; columns become rows by turning the image. All crops go together:

    slice (H, W) → float32 → rows summed (Σ size, W) → boxes turned (Σ w, size) → summed (Σ size, size) → turned
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
import torch

from pretrain.data import resize

_BLUR_REACH = 5  # deviations: 6e-7 of the kernel lies beyond
_KEPT = 2048  # axes whose weights are kept; some 10 kB each at usual sizes


class Crop(NamedTuple):
    """A box (row, column, height, width) of a slice, and what becomes of it; sigma 0 does not smooth."""

    box: tuple[int, int, int, int]
    flip: bool
    sigma: float


class Bag(NamedTuple):
    """Which rows of a table make each row of the result, and their weights: (size, T) both."""

    rows: np.ndarray
    weights: np.ndarray


@lru_cache(_KEPT)
def _axis(length: int, size: int, flip: bool) -> Bag:
    return Bag(*(tensor.numpy() for tensor in resize.taps(length, size, flip)))


@lru_cache(_KEPT)
def _neighbours(reach: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, distance = resize.blur_taps(reach, size)
    return rows.numpy(), distance.numpy()


def _blur(sigma: float, size: int) -> Bag:
    rows, distance = _neighbours(math.ceil(_BLUR_REACH * sigma), size)
    near = np.arange(distance.shape[1], dtype=np.float32)
    weights = np.exp(near * near / np.float32(-2 * sigma**2)).take(distance)
    weights /= weights.sum(axis=1, keepdims=True)
    return Bag(rows, weights)


def crops(plane: np.ndarray, wanted: Sequence[Sequence[Crop]], sizes: Sequence[int]) -> list[list[np.ndarray]]:
    """Return the `wanted` crops of an (H, W) int16 or float32 plane by size: (size, size) float32, not contiguous."""
    every = [(crop, size) for of_size, size in zip(wanted, sizes) for crop in of_size]
    top, left = (min(crop.box[side] for crop, _ in every) for side in (0, 1))
    bottom, right = (max(crop.box[side] + crop.box[side + 2] for crop, _ in every) for side in (0, 1))
    table = _table(bottom - top, right - left)
    table[:, : right - left] = plane[top:bottom, left:right]
    smooth = [_blur(crop.sigma, size) if crop.sigma else None for crop, size in every]
    bags = [_axis(crop.box[2], size, False) for crop, size in every]
    rows = iter(_sums(table, bags, [crop.box[0] - top for crop, _ in every], smooth))
    found, smooth = [], iter(smooth)
    for of_size, size in zip(wanted, sizes):
        if not of_size:
            found.append([])
            continue
        begins = [0, *accumulate(crop.box[3] for crop in of_size)]
        table = _table(begins[-1], size)
        for crop, begin, summed in zip(of_size, begins, rows):
            column, width = crop.box[1] - left, crop.box[3]
            table[begin : begin + width, :size] = summed[:, column : column + width].T
        bags = [_axis(crop.box[3], size, crop.flip) for crop in of_size]
        columns = _sums(table, bags, begins, list(islice(smooth, len(bags))))
        found.append([each[:, :size].T for each in columns])
    return found


def _sums(table: np.ndarray, bags: list[Bag], begins: list[int], smooth: list[Bag | None]) -> list[np.ndarray]:
    """(size, W) of a (H, W) table for each bag, whose rows count from where it begins; then smoothed where it is."""
    whole = _bagged(table, bags, begins)
    ends = list(accumulate(len(bag.rows) for bag in bags))
    parts = [whole[end - len(bag.rows) : end] for bag, end in zip(bags, ends)]
    places = [place for place, bag in enumerate(smooth) if bag is not None]
    if places:
        rough = [ends[place] - len(bags[place].rows) for place in places]
        smoothed = _bagged(whole, [smooth[place] for place in places], rough)
        for place, end in zip(places, accumulate(len(bags[place].rows) for place in places)):
            parts[place] = smoothed[end - len(bags[place].rows) : end]
    return parts


def _bagged(table: np.ndarray, bags: list[Bag], begins: list[int]) -> np.ndarray:
    """(Σ size, W) of a (H, W) table."""
    rows = np.concatenate([(bag.rows + np.int32(begin)).ravel() for bag, begin in zip(bags, begins)])
    weights = np.concatenate([bag.weights.ravel() for bag in bags])
    counts = np.repeat([bag.rows.shape[1] for bag in bags], [len(bag.rows) for bag in bags])
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    table, rows, offsets, weights = (torch.from_numpy(each) for each in (table, rows, offsets, weights))
    return torch.embedding_bag(table, rows, offsets, False, 0, False, weights, True)[0].numpy()


def _table(height: int, width: int) -> np.ndarray:
    """(height, ≥ width) float32, zero beyond the width.

    A row has an odd number of lines of the cache: columns of another table would drive each other out of it.
    """
    table = np.empty((height, (-(-width // 16) | 1) * 16), np.float32)
    table[:, width:] = 0
    return table
