"""Synthetic brains in four MR sequences with a tumour of one of two types, told by two sequences together.

A tumour has two extents around one middle: that of its fluid, bright in T2 (and, more faintly, dark in T1), and that of
its leak, bright in FLAIR (and faintly enhancing in T1 with contrast). In `match` the leak reaches beyond the fluid, in
`mismatch` (after the T2-FLAIR mismatch sign) the fluid beyond the leak, while tumours of either type are small and
large. So one sequence alone, however well it is measured, says little; T1 or T2 together with T1c or FLAIR tells, and
where T2 is missing T1 can stand in for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_prep.phantom import Canvas, texture

TYPES = ("match", "mismatch")
SEQUENCES = ("t1", "t1c", "t2", "flair")
# white matter, grey matter, cerebrospinal fluid; then what the tumour's fluid and its leak add
_SIGNAL = {
    "t1": ((1.00, 0.78, 0.30), -0.30, 0.00),
    "t1c": ((1.00, 0.80, 0.32), 0.00, 0.30),
    "t2": ((0.55, 0.72, 1.25), 0.60, 0.00),
    "flair": ((0.62, 0.80, 0.20), 0.00, 0.60),
}
_AREA, _MORE = (500.0, 2600.0), 350.0  # mm² of a tumour in a slice: its range, and what one extent has more or less


@dataclass(frozen=True)
class Brain:
    """signal  sequence → (Z, Y, X) float32, skull-stripped: 0 outside the brain; axes as data_prep.volume.Volume
    tumour   (Z, Y, X) uint8, 1 where there is fluid or leak
    extent   radii in mm of fluid and leak
    spacing  (z, y, x) in mm
    kind     the tumour's type
    """

    signal: dict[str, np.ndarray]
    tumour: np.ndarray
    extent: tuple[float, float]
    spacing: tuple[float, float, float]
    kind: str


def make(rng: np.random.Generator, slices: int, size: int) -> Brain:
    """One patient; everything is drawn from `rng`."""
    spacing = (float(rng.uniform(6, 8)), *(float(rng.uniform(175, 190) / size),) * 2)
    canvas = Canvas((slices, size, size), spacing)
    depth, breadth, height = (radius * rng.uniform(0.92, 1.08) for radius in (78, 62, 62))
    brain = np.broadcast_to(canvas.ellipsoid((0, 0, 0), (height, depth, breadth)), canvas.labels.shape)
    tissue = np.where(brain, 2, 0)
    folds = 5 * texture(rng, brain.shape, 1.5)
    tissue[brain & (ndimage.distance_transform_edt(brain, sampling=spacing) > 11 + folds)] = 1
    for side in (-1, 1):  # the lateral ventricles
        tissue[canvas.ellipsoid((4, -6, side * 11), (24, rng.uniform(22, 32), rng.uniform(5, 9))) & brain] = 3
    kind = rng.integers(2)
    area = rng.uniform(*_AREA)
    wide, narrow = (float(np.sqrt(each / np.pi)) for each in (area + _MORE, area - _MORE))
    extent = (wide, narrow) if TYPES[kind] == "mismatch" else (narrow, wide)
    fluid, leak = _tumour(canvas, brain, extent, rng)
    signal = {}
    for name, (means, fluid_adds, leak_adds) in _SIGNAL.items():
        levels = np.array([0.0, *(mean * rng.normal(1, 0.03) for mean in means)])
        image = levels[tissue] + fluid_adds * rng.uniform(0.9, 1.1) * fluid + leak_adds * rng.uniform(0.9, 1.1) * leak
        image += 0.05 * texture(rng, brain.shape, 1.2)
        image = ndimage.gaussian_filter(image, (0, 0.6, 0.6)) + rng.normal(0, 0.03, brain.shape)
        coil = 1 + 0.12 * texture(rng, brain.shape, size / 4)  # the receiving coil's sensitivity
        signal[name] = np.float32(np.where(brain, np.maximum(image * coil, 0.02), 0) * rng.uniform(200, 1200))
    return Brain(signal, np.uint8(fluid | leak), extent, spacing, TYPES[kind])


def _tumour(
    canvas: Canvas, brain: np.ndarray, extent: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(Z, Y, X) masks of fluid and leak: ellipsoids of one shape around one middle, somewhere in the brain."""
    around, out, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.45), rng.uniform(0.85, 1.18)
    middle = (rng.uniform(-6, 6), 70 * out * np.sin(around), 55 * out * np.cos(around))
    deep = rng.uniform(28, 36)
    return tuple(canvas.ellipsoid(middle, (deep, radius * aspect, radius / aspect)) & brain for radius in extent)
