"""What a random volume holds, kept apart from the code that reads it, and the comparison of the two."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.volumes.volume import Volume

FLIP = np.diag([-1.0, -1.0, 1.0])  # LPS and RAS


@dataclass
class Truth:
    """values (I, J, K) as they must come out; affine (4, 4) indices → RAS mm.

    slope, level  (3,) and number: where a volume is resampled, its values are a field, level + slope · mm
    """

    values: np.ndarray
    affine: np.ndarray
    slope: np.ndarray | None = None
    level: float = 0.0

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def refuses(truth: Truth) -> str:
    """Return a pattern of the reason for which the geometry alone must be refused by default; "" if it must not."""
    directions = truth.affine[:3, :3] / truth.spacing
    orders = [list(order) for order in itertools.permutations(range(3))]
    nearest = max(orders, key=lambda order: np.abs(directions[order, range(3)]).min())
    angle = float(np.degrees(np.arccos(np.abs(directions[nearest, range(3)]).min())))
    greedy = float(np.degrees(np.arccos(np.abs(directions).max(axis=0).min())))
    if angle > 20:
        ends = sorted({int(end(value)) for end in (np.floor, np.ceil) for value in (angle, greedy)})
        return f"oblique by ({'|'.join(map(str, ends))}) degrees"
    coarse = int(truth.spacing.argmax())
    if truth.spacing[coarse] > 1.5 * np.delete(truth.spacing, coarse).max() and nearest[coarse] != 2:
        return f"{('sagittal', 'coronal')[nearest[coarse]]} slices"
    return ""


def difference(volume: Volume, truth: Truth, tolerance: float = 0.0) -> str:
    """Return how a volume differs from the truth in values, order of axes, spacing or place; "" if it does not.

    tolerance  of values, as a share of the largest

    Each of its voxels is looked up in the truth by its position in the patient.
    """
    if truth.slope is not None:
        return _off_field(volume, truth)
    z, y, x = volume.voxels.shape
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if np.abs(np.diag(directions) - [-1, -1, 1]).max() > 0.5:
        return f"axes run along {np.round(directions, 2).tolist()}"
    if sorted((x, y, z)) != sorted(truth.values.shape):
        return f"{volume.voxels.shape} voxels of {truth.values.shape}"
    world = _places(volume)
    inside = (world - truth.affine[:3, 3]) @ np.linalg.inv(truth.affine[:3, :3]).T
    nearest = np.rint(inside).astype(int)
    off = np.abs(inside - nearest).max()
    if off > 0.05:
        return f"voxels lie {off:.3f} voxels beside their places"
    if nearest.min() < 0 or (nearest.max(axis=0) >= truth.values.shape).any():
        return f"voxels {nearest.min(axis=0)} to {nearest.max(axis=0)} of {truth.values.shape}"
    found = volume.voxels.transpose(2, 1, 0).reshape(-1).astype(np.float64)
    expected = truth.values[tuple(nearest.T)].astype(np.float64)
    wrong = np.abs(found - expected) > tolerance * max(np.abs(expected).max(), 1)
    if wrong.any():
        n = int(wrong.argmax())
        return f"{wrong.mean():.0%} of the voxels differ: {found[n]} at {nearest[n].tolist()}, not {expected[n]}"
    return ""


def _places(volume: Volume) -> np.ndarray:
    """Return (N, 3) mm of all voxels, x first."""
    z, y, x = volume.voxels.shape
    indices = np.stack(np.meshgrid(np.arange(x), np.arange(y), np.arange(z), indexing="ij"), -1).reshape(-1, 3)
    return indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def _off_field(volume: Volume, truth: Truth) -> str:
    """Return whether a resampled volume holds the field between the truth's outermost voxels."""
    found = volume.voxels.transpose(2, 1, 0).reshape(-1).astype(float)
    world = _places(volume)
    expected = truth.level + world @ truth.slope
    at = (world - truth.affine[:3, 3]) @ np.linalg.inv(truth.affine[:3, :3]).T
    inside = ((at > 0.01) & (at < np.array(truth.values.shape) - 1.01)).all(axis=1)
    if inside.sum() < 0.4 * np.prod(np.array(truth.values.shape) - 2):
        return f"{inside.sum()} voxels of {truth.values.size} are left"
    off = np.abs(found - expected)[inside].max()
    return f"{off:.1f} away from the field" if off > 2.5 else ""


def field(rng: np.random.Generator, shape: tuple[int, ...], affine: np.ndarray) -> Truth:
    """Return values that rise evenly along some direction, 200 to 3000."""
    slope = rng.normal(0, 1, 3)
    ends = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    rising = ends @ slope
    slope *= 2800 / (rising.max() - rising.min())
    level = 200 - (ends @ slope).min()
    return Truth(np.rint(ends @ slope + level), affine, slope, level)


def tilted(rng: np.random.Generator, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an affine whose slices lie obliquely over each other, as those of a tilted gantry."""
    turned, row, step = affine.copy(), affine[:3, 1], float(np.linalg.norm(affine[:3, 2]))
    height = float(np.linalg.norm(row))
    shift = np.tan(np.radians(rng.uniform(3, 25))) * step
    shift = max(min(shift, 1.5 * height * shape[1] / shape[2]), np.tan(np.radians(2)) * step)
    turned[:3, 2] += row / height * shift * rng.choice([-1, 1])
    return turned


def directions(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Return (3, 3) unit vectors of the axes I, J, K as columns, RAS.

    kind  axial, sagittal, coronal (with flips), any (any order and flips), slight (turned by up to 15 degrees),
          oblique (any turn)
    """
    order = {"axial": (0, 1, 2), "sagittal": (1, 2, 0), "coronal": (0, 2, 1)}.get(kind)
    axes = np.eye(3)[:, rng.permutation(3) if order is None else list(order)] * rng.choice([-1, 1], 3)
    if kind == "slight":
        axes = Rotation.from_rotvec(np.radians(rng.uniform(0.2, 11, 3))).as_matrix() @ axes
    elif kind == "oblique":
        axes = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix() @ axes
    return axes


def grid(rng: np.random.Generator, shape: tuple[int, ...], kind: str, *, right_handed: bool = False) -> np.ndarray:
    """Return a random affine (4, 4) indices → RAS mm; K is the slices' axis and at least as coarse as the others."""
    affine = np.eye(4)
    axes = directions(rng, kind)
    if right_handed and np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    spacing = rng.uniform(0.4, 1.2, 3)
    spacing[2] = spacing[:2].max() * rng.choice([1.0, 1.3, 2.5, 5.0])
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = rng.uniform(-250, 250, 3)
    return affine


def distinct(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Return integers within low … high, no value twice while they last."""
    count = int(np.prod(shape))
    values = np.arange(low, high + 1) if high - low < 1 << 20 else rng.integers(low, high, 4 * count, np.int64)
    drawn = np.concatenate([rng.permutation(values) for _ in range(-(-count // len(values)))])[:count]
    return drawn.reshape(shape)
