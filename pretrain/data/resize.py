"""Antialiased bicubic crop-and-resize, and blur, as weights along one axis of the image and then along the other.

The weights equal those of `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` on the cropped image. They
come as whole matrices for a device that multiplies those fastest (`weights`, `blur_weights`, `apply`), and as the few
of them that are not zero (`taps`, `blur_taps`) for a CPU (`crops`).

On a CPU whole matrices would multiply by zero nineteen times of twenty. There each row of a crop is the weighted sum of
the few rows of the slice that lie under its kernel, for which PyTorch's embedding bag is the fastest on a core; columns
become rows by transposing the image. All crops of a slice go together:

    slice (H, W) → float32 → rows summed (Σ size, W) → boxes transposed (Σ w, size) → summed (Σ size, size) → transposed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
import torch

_A = -0.5  # of the cubic kernel: what antialiased interpolation uses (Keys, 1981)
_BLUR_REACH = 5  # deviations: 6e-7 of the kernel lies beyond
_KEPT = 2048  # axes whose weights are kept; some 10 kB each at usual sizes


def weights(start: torch.Tensor, length: torch.Tensor, extent: int, size: int, flip: torch.Tensor) -> torch.Tensor:
    """Return (N, size, extent) matrices that crop `length` pixels from `start` of an axis and resize them to `size`.

    start, length  (N,) whole numbers as int64, 0 ≤ start, start + length ≤ extent
    flip           (N,) bool, reverses the result
    """
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    scale = length / size
    support = scale.clamp(min=1)  # below 1 the image is enlarged and the kernel keeps its own width
    place = torch.arange(size, device=start.device, dtype=torch.float32).view(1, -1, 1)
    place = torch.where(flip.view(-1, 1, 1), size - 1 - place, place)
    centre = scale * (place + 0.5)
    pixel = torch.arange(extent, device=start.device, dtype=torch.float32) - start  # exact: both count from the crop
    kernel = _cubic((pixel + 0.5 - centre) / support)
    # the kernel is cut at the crop's border and brought to sum 1 again
    kernel = torch.where((pixel >= 0) & (pixel < length), kernel, 0.0)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def taps(length: int, size: int, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (size, T) int32 pixels, counted from the crop's start, and their weights: `weights` without its zeros."""
    scale = length / size
    support = max(scale, 1.0)
    count = min(math.ceil(4 * support), length)
    place = torch.arange(size, dtype=torch.float32).unsqueeze(1)
    centre = scale * ((size - 1 - place if flip else place) + 0.5)
    # at a border the pixels move inwards: those beyond it do not contribute
    first = (centre - 2 * support + 0.5).floor().clamp_(0, length - count)
    pixel = first + torch.arange(count)
    kernel = _cubic((pixel + 0.5 - centre) / support)
    return pixel.int(), kernel / kernel.sum(dim=-1, keepdim=True)


def blur_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """Return (…, size, size) Gaussian smoothing of one axis; the identity where sigma is 0; rows sum to 1."""
    place = torch.arange(size, device=sigma.device, dtype=torch.float32)
    squared = (place.unsqueeze(0) - place.unsqueeze(1)).square()
    width = 2 * sigma.clamp(min=1e-3).square()[..., None, None]
    kernel = torch.exp(-squared / width)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def blur_taps(reach: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (size, T) int32 pixels within `reach` of each pixel of a smoothed axis, and their int64 distances."""
    count = min(2 * reach + 1, size)
    place = torch.arange(size, dtype=torch.int32).unsqueeze(1)
    pixel = (place - reach).clamp_(0, size - count) + torch.arange(count, dtype=torch.int32)
    return pixel, (pixel - place).abs_().long()


def apply(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Resize (N, S, H, W) images by (N, S or 1, h, H) and (N, S or 1, w, W) weights to (N, S, h, w)."""
    return rows @ (images @ columns.transpose(2, 3))


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    x = distance.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


class CropBox(NamedTuple):
    """A box (row, column, height, width) of a slice, and what becomes of it; sigma 0 does not smooth."""

    box: Sequence[int]
    flip: bool
    sigma: float


class Taps(NamedTuple):
    """Which rows of a table make each row of the result, and their weights: (size, T) both."""

    rows: np.ndarray
    weights: np.ndarray


@lru_cache(_KEPT)
def _axis(length: int, size: int, flip: bool) -> Taps:
    """The taps that resize an axis."""
    rows, kernel = taps(length, size, flip)
    return Taps(rows.numpy(), kernel.numpy())


@lru_cache(_KEPT)
def _blur_rows(reach: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, distance = blur_taps(reach, size)
    return rows.numpy(), distance.numpy()


def _blur(sigma: float, size: int) -> Taps:
    """The taps that smooth an axis."""
    rows, distance = _blur_rows(math.ceil(_BLUR_REACH * sigma), size)
    near = np.arange(distance.shape[1], dtype=np.float32)
    kernel = np.exp(near * near / np.float32(-2 * sigma**2)).take(distance)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return Taps(rows, kernel)


def crops(plane: np.ndarray, wanted: Sequence[Sequence[CropBox]], sizes: Sequence[int]) -> list[list[np.ndarray]]:
    """Return the `wanted` crops of an (H, W) int16 or float32 plane by size: (size, size) float32, not contiguous."""
    every = [(crop, size) for of_size, size in zip(wanted, sizes) for crop in of_size]
    top, left = (min(crop.box[side] for crop, _ in every) for side in (0, 1))
    bottom, right = (max(crop.box[side] + crop.box[side + 2] for crop, _ in every) for side in (0, 1))
    table = _table(bottom - top, right - left)
    table[:, : right - left] = plane[top:bottom, left:right]
    smooth = [_blur(crop.sigma, size) if crop.sigma else None for crop, size in every]
    axes = [_axis(crop.box[2], size, False) for crop, size in every]
    rows = iter(_sums(table, axes, [crop.box[0] - top for crop, _ in every], smooth))
    found: list[list[np.ndarray]] = []
    smooth_columns = iter(smooth)
    for of_size, size in zip(wanted, sizes):
        if not of_size:
            found.append([])
            continue
        begins = [0, *accumulate(crop.box[3] for crop in of_size)]
        table = _table(begins[-1], size)
        for crop, begin, summed in zip(of_size, begins, rows):
            column, width = crop.box[1] - left, crop.box[3]
            table[begin : begin + width, :size] = summed[:, column : column + width].T
        axes = [_axis(crop.box[3], size, crop.flip) for crop in of_size]
        columns = _sums(table, axes, begins, list(islice(smooth_columns, len(axes))))
        found.append([each[:, :size].T for each in columns])
    return found


def _sums(table: np.ndarray, axes: list[Taps], begins: list[int], smooth: list[Taps | None]) -> list[np.ndarray]:
    """(size, W) sums of an (H, W) table's rows for each axis, whose rows count from its begin; smoothed where asked."""
    whole = _summed(table, axes, begins)
    ends = list(accumulate(len(axis.rows) for axis in axes))
    found = [whole[end - len(axis.rows) : end] for axis, end in zip(axes, ends)]
    blurred = [(place, blur) for place, blur in enumerate(smooth) if blur is not None]
    if blurred:
        rough = [ends[place] - len(axes[place].rows) for place, _ in blurred]
        smoothed = _summed(whole, [blur for _, blur in blurred], rough)
        places = [place for place, _ in blurred]
        for place, end in zip(places, accumulate(len(axes[place].rows) for place in places)):
            found[place] = smoothed[end - len(axes[place].rows) : end]
    return found


def _summed(table: np.ndarray, axes: list[Taps], begins: list[int]) -> np.ndarray:
    """(Σ size, W) weighted sums of an (H, W) table's rows."""
    rows = np.concatenate([(axis.rows + np.int32(begin)).ravel() for axis, begin in zip(axes, begins)])
    kernel = np.concatenate([axis.weights.ravel() for axis in axes])
    counts = np.repeat([axis.rows.shape[1] for axis in axes], [len(axis.rows) for axis in axes])
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    values, index, starts, scale = (torch.from_numpy(each) for each in (table, rows, offsets, kernel))
    return torch.embedding_bag(values, index, starts, False, 0, False, scale, True)[0].numpy()


def _table(height: int, width: int) -> np.ndarray:
    """(height, ≥ width) float32, zero beyond the width.

    A row has an odd number of cache lines: with an even number, the rows of a column would evict each other.
    """
    table = np.empty((height, (-(-width // 16) | 1) * 16), np.float32)
    table[:, width:] = 0
    return table
