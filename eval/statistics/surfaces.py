"""How well a drawn volume fits the true one, in three dimensions and in mm: Dice, IoU, HD95, surface distance.

Surfaces are MONAI's: HD95 is the larger of the two directions' 95th percentiles, between centres of border voxels;
the normalised surface distance is the share of both surfaces that lies within a tolerance of the other, with the
area of every surface element counted (the method of DeepMind's surface-distance).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

METRICS = ("dice", "iou", "hd95", "nsd")


def compare(
    drawn: np.ndarray,
    true: np.ndarray,
    spacing: tuple[float, float, float],
    tolerance: float,
    distances: bool = True,
    whole: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Return (4,) figures of METRICS for one structure of one volume; without `distances` the first two.

    drawn, true  (Z, H, W) bool
    spacing      (slice, row, column) in mm
    tolerance    mm, of the normalised surface distance
    whole        shape of the volume that the two are cut from, if they are

    NaN where the structure is in neither. Where it is in one alone Dice, IoU and surface distance are 0 and HD95 is the
    diagonal of the volume: a miss must cost more than any wrong place. A volume of one slice is compared in its plane.
    Raises ValueError where the two have different shapes or the spacing is not above zero.
    """
    if drawn.shape != true.shape:
        raise ValueError(f"segmentation of shape {drawn.shape}, but the truth has {true.shape}; draw on its grid")
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise ValueError(f"spacing {tuple(spacing)} mm: must be above zero")
    both, mine, its = (np.count_nonzero(each) for each in (drawn & true, drawn, true))
    if not mine + its:
        found = [np.nan] * 4
    elif not mine or not its:
        found = [0.0, 0.0, float(np.linalg.norm(np.multiply(whole or drawn.shape, spacing))), 0.0]
    else:
        found = [2 * both / (mine + its), both / (mine + its - both)]
        found += _distances(drawn, true, spacing, tolerance, (whole or drawn.shape)[0] == 1) if distances else []
    return np.array(found[: len(METRICS) if distances else 2])


def _distances(
    drawn: np.ndarray, true: np.ndarray, spacing: tuple[float, float, float], tolerance: float, flat: bool
) -> list[float]:
    """Return HD95 in mm and the normalised surface distance."""
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # takes seconds to import

    crop = _around(drawn | true)
    mine, its = (torch.from_numpy(each[crop])[None, None].float() for each in (drawn, true))
    steps = list(spacing)
    if flat:
        mine, its, steps = mine[:, :, 0], its[:, :, 0], steps[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # one of MONAI's functions calls another's old argument
        distance = compute_hausdorff_distance(mine, its, include_background=True, percentile=95, spacing=steps)
        within = compute_surface_dice(
            mine, its, [tolerance], include_background=True, spacing=steps, use_subvoxels=True
        )
    return [distance.item(), within.item()]


def _around(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box of `mask`."""
    axes = range(mask.ndim)
    seen = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(each[0], each[-1] + 1) for each in seen)
