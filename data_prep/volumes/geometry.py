"""Grids: turned to one orientation, gantry tilt corrected, one volume resampled onto another's grid.

Arrays here are (I, J, K) with an affine (4, 4) from indices to mm, x to the right, y to the front, z to
the head (NIfTI's RAS).
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy import ndimage

from data_prep.config import GeometryConfig
from data_prep.volumes.volume import RejectedSeries

THICK = 1.5  # an axis coarser than both others by this factor is the one along which slices were acquired
_VOXEL_MM = (0.005, 100.0)  # the longest edge of a voxel is above the first, the shortest below the second
_RIGHT_ANGLE = 0.01  # cosine up to which two axes count as perpendicular
_ALONG = 0.3  # cosine below which an axis does not run along a patient axis; that of the worst turn is 1/3
_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations
_PLANES = ("sagittal", "coronal", "axial")  # by the patient axis that the slices are stacked along


def to_axial(
    voxels: np.ndarray, affine: np.ndarray, config: GeometryConfig, outside: float
) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return any grid as axial slices: (Z, Y, X) voxels, affine for (x, y, z) and notes for the manifest.

    Axial grids are permuted and flipped, never interpolated. Slices of a tilted gantry are shifted in their own plane
    until they lie over each other; oblique grids and thick sagittal or coronal slices are resampled linearly on an
    axial grid, `outside` beyond their edge. Raises RejectedSeries for those that `config` refuses.
    """
    tilt = shear_degrees(affine)
    notes: dict[str, object] = {}
    if tilt > config.max_tilt_degrees:
        _refuse_unless(config.tilt == "correct", f"gantry tilt of {tilt:.1f} degrees", "tilt=correct")
        voxels, affine = _untilted(voxels, affine, outside)
        notes["tilt_corrected_degrees"] = round(tilt, 1)
    off = oblique_degrees(affine)
    if off > config.max_oblique_degrees:
        _refuse_unless(config.oblique == "reformat", f"oblique by {off:.0f} degrees", "oblique=reformat")
        voxels, affine = _on_axial_grid(voxels, affine, outside)
        notes["oblique_reformatted_degrees"] = round(off, 1)
    plane = acquired_plane(affine)
    if plane in ("sagittal", "coronal"):
        _refuse_unless(config.planes == "reformat", f"{plane} slices", "planes=reformat")
        voxels, affine = _with_square_pixels(voxels, affine, outside)
        notes["reformatted_from"] = plane
    turned, affine = canonical(voxels, affine)
    return turned, affine, notes


def _refuse_unless(allowed: bool, what: str, setting: str) -> None:
    if not allowed:
        raise RejectedSeries(f"{what}; geometry.{setting} resamples them")


def shear_degrees(affine: np.ndarray) -> float:
    """Return how far the axes of a grid are from perpendicular: the gantry tilt of a CT."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0, 1))))


def nearest_axes(affine: np.ndarray) -> np.ndarray:
    """Return (3,) the patient axis nearest to each axis of the grid; each patient axis is taken once.

    Raises RejectedSeries if two axes of the grid run along the same one.
    """
    near = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    nearest = near.argmax(axis=0)
    if sorted(nearest) != [0, 1, 2]:  # turned by about 45 degrees, or flat
        nearest = np.array(max(permutations(range(3)), key=lambda order: float(near[list(order), range(3)].min())))
        if near[nearest, range(3)].min() < _ALONG:
            raise RejectedSeries("two axes of the image run along the same axis of the patient; check its affine")
    return nearest


def oblique_degrees(affine: np.ndarray) -> float:
    """Return the largest angle between an axis of the grid and the patient axis nearest to it."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    along = np.abs(directions[nearest_axes(affine), range(3)])
    return float(np.degrees(np.arccos(np.clip(along.min(), 0, 1))))


def check_voxels(affine: np.ndarray, unit: str) -> None:
    """Raise RejectedSeries for voxels that no scanner makes: their unit must be another one than they are read in.

    unit  what the header states; "" if it states none
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        return  # is refused as an affine without a volume
    if lengths.max() > _VOXEL_MM[0] and lengths.min() < _VOXEL_MM[1]:
        return
    stated = f"{unit}, its header says" if unit else "its header states no unit"
    raise RejectedSeries(
        f"voxels of {edges(lengths)} mm ({stated}); geometry.units=mm, metre or micron names the unit of its numbers"
    )


def edges(lengths: np.ndarray) -> str:
    """Return the edges of a voxel as a reason has them."""
    return " × ".join(f"{length:.4g}" for length in lengths)


def acquired_plane(affine: np.ndarray) -> str | None:
    """Return sagittal, coronal or axial by the coarsest axis; None if no axis stands out (acquired in 3-D)."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    coarse = int(lengths.argmax())
    if lengths[coarse] <= THICK * np.delete(lengths, coarse).max():
        return None
    return _PLANES[nearest_axes(affine)[coarse]]


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip an (I, J, K) array to (Z, Y, X), axes running as Volume says; no resampling.

    Returns a view and the affine for (x, y, z) indices.
    """
    axes = np.argsort(nearest_axes(affine))  # voxel axis of each patient axis
    turned, transform = voxels.transpose(axes), affine[:, [*axes, 3]].copy()
    wanted = np.array([-1.0, -1.0, 1.0])  # RAS axes: x runs to the left, y to the back, z to the head
    for axis in range(3):
        if transform[axis, axis] * wanted[axis] < 0:
            transform[:3, 3] += transform[:3, axis] * (turned.shape[axis] - 1)
            transform[:3, axis] *= -1
            turned = np.flip(turned, axis)
    return turned.transpose(2, 1, 0), transform


def same_grid(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...], tolerance_mm: float = 0.05) -> bool:
    """Return whether two affines place every corner of an (X, Y, Z) grid within `tolerance_mm`."""
    return distance(first, second, shape) < tolerance_mm


def distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far two affines place a corner of an (X, Y, Z) grid apart, at most, along one axis of the patient."""
    return float(np.abs(_corners(shape) @ (first - second)[:3].T).max())


def place(
    voxels: np.ndarray,
    affine: np.ndarray,
    onto: np.ndarray,
    shape: tuple[int, int, int],
    *,
    order: int,
    outside: float = 0,
) -> np.ndarray:
    """Return (X, Y, Z) values of an (I, J, K) array on the grid `onto` of `shape`; `outside` beyond its edge.

    order  1 linear, after a Gaussian blur along axes on which the target is coarser, so that nothing aliases;
           0 nearest neighbour, for labels
    """
    step = np.linalg.inv(affine) @ onto
    if order:
        coarser = np.abs(step[:3, :3]).max(axis=1)  # indices of the source passed by one index of the target
        sigma = np.where(coarser > 1.2, np.sqrt(np.maximum(coarser**2 - 1, 0)) / _FWHM, 0)
        if sigma.any():
            voxels = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
    placed = ndimage.affine_transform(
        voxels, step[:3, :3], step[:3, 3], output_shape=shape, order=order, mode="nearest"
    )
    across, along = np.ogrid[: shape[0], : shape[1]]
    for k in range(shape[2]):  # the source ends half a voxel beyond its outermost centres
        beyond = np.zeros(shape[:2], bool)
        for axis in range(3):
            at = step[axis, 0] * across + step[axis, 1] * along + (step[axis, 2] * k + step[axis, 3])
            beyond |= (at < -0.5) | (at > voxels.shape[axis] - 0.5)
        placed[:, :, k][beyond] = outside
    return placed


def overlap(shape: tuple[int, ...], affine: np.ndarray, onto: np.ndarray, onto_shape: tuple[int, ...]) -> float:
    """Return the share of the grid `onto` inside the grid `affine`, estimated on a lattice of 20³ points."""
    lattice = np.stack(np.meshgrid(*(np.linspace(0, n - 1, 20) for n in onto_shape), indexing="ij"), axis=-1)
    points = np.concatenate([lattice.reshape(-1, 3), np.ones((20**3, 1))], axis=1)
    inside = points @ (np.linalg.inv(affine) @ onto)[:3].T
    return float(((inside > -0.5) & (inside < np.array(shape) - 0.5)).all(axis=1).mean())


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    """Return (8, 4) homogeneous indices of the corners of a grid."""
    ends = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([ends, np.ones((8, 1))], axis=1).astype(float)


def _untilted(voxels: np.ndarray, affine: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Shift sheared slices in their own plane by fractions of a pixel, so that the axes become perpendicular.

    The planes grow by the shift from first to last slice: nothing is cut off.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / lengths
    # slices lie in two axes that are perpendicular; if several pairs are, in the finer ones
    upright_pairs = [n for n in range(3) if abs(np.dot(*np.delete(directions, n, axis=1).T)) < _RIGHT_ANGLE]
    across = max(upright_pairs, key=lambda axis: (lengths[axis], axis), default=2)
    first, second = (axis for axis in range(3) if axis != across)
    normal = np.cross(affine[:3, first], affine[:3, second])
    normal /= np.linalg.norm(normal)
    upright = affine.copy()
    upright[:3, across] = normal * (normal @ affine[:3, across])
    slide = np.linalg.inv(affine[:3, :3]) @ (affine[:3, across] - upright[:3, across])  # pixels per slice
    slide = np.where(np.arange(3) == across, 0, np.round(slide, 6))  # no rounding error makes it grow
    count = voxels.shape[across]
    ends = np.outer((0, count - 1), slide)
    low = np.floor(ends.min(axis=0))
    grown = tuple(int(n) for n in np.array(voxels.shape) + np.ceil(ends.max(axis=0)) - low)
    if np.prod(grown, dtype=float) > 4 * voxels.size:
        raise RejectedSeries("its slices lie beside rather than over each other; check their positions")
    upright[:3, 3] += affine[:3, :3] @ low
    out = np.full(grown, outside, voxels.dtype)
    for place in range(count):
        plane = np.take(voxels, place, axis=across)
        moved = [(slide * place - low)[axis] for axis in (first, second)]
        wide = np.full([n for axis, n in enumerate(grown) if axis != across], outside, voxels.dtype)
        whole = [int(np.floor(shift)) for shift in moved]
        at = tuple(slice(start, start + n) for start, n in zip(whole, plane.shape))
        wide[at] = plane
        rest = [shift - start for shift, start in zip(moved, whole)]
        out[(slice(None),) * across + (place,)] = ndimage.shift(wide, rest, order=1, mode="constant", cval=outside)
    return out, upright


def _on_axial_grid(voxels: np.ndarray, affine: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Resample the volume on the axis-aligned grid that encloses it, at its own spacing."""
    nearest, lengths = nearest_axes(affine), np.linalg.norm(affine[:3, :3], axis=0)
    spacing = lengths[np.argsort(nearest)]
    corners = (_corners(voxels.shape) @ affine.T)[:, :3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    columns, rows, planes = (int(n) for n in np.floor((high - low) / spacing + 1e-6) + 1)
    shape = columns, rows, planes
    if np.prod(shape, dtype=float) > 8 * voxels.size:
        raise RejectedSeries("its axial grid would be more than 8 times as large; check its affine")
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = low
    return place(voxels, affine, grid, shape, order=1, outside=outside), grid


def _with_square_pixels(voxels: np.ndarray, affine: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate the coarser in-plane axis of axial slices to the spacing of the finer one."""
    lengths, nearest = np.linalg.norm(affine[:3, :3], axis=0), nearest_axes(affine)
    in_plane = [axis for axis in range(3) if nearest[axis] != 2]
    coarse = max(in_plane, key=lambda axis: lengths[axis])
    fine = min(lengths[axis] for axis in in_plane)
    grid, extents = affine.copy(), list(voxels.shape)
    grid[:3, coarse] *= fine / lengths[coarse]
    extents[coarse] = int((voxels.shape[coarse] - 1) * lengths[coarse] / fine) + 1
    first, second, third = extents
    return place(voxels, affine, grid, (first, second, third), order=1, outside=outside), grid
