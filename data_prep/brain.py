"""Synthetic brains in four MR sequences with a tumour of one of two types, which no single sequence tells apart.

A tumour has two lobes. One of them, drawn at random, is bright in T2 (and, more faintly, dark in T1); one, drawn at
random too, is bright in FLAIR (and faintly enhances in T1 with contrast). The type is whether it is the same one: in
`match` it is, in `mismatch` not. So every sequence looks the same in both types, T1 or T2 together with T1c or FLAIR
tells the type, and where T2 is missing T1 can stand in for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_prep.phantom import Canvas, texture

TYPES = ("match", "mismatch")
SEQUENCES = ("t1", "t1c", "t2", "flair")
# white matter, grey matter, cerebrospinal fluid, tumour; then what a lobe adds that is wet (T2) or leaky (FLAIR)
_SIGNAL = {
    "t1": ((1.00, 0.78, 0.30, 0.72), -0.22, 0.00),
    "t1c": ((1.00, 0.80, 0.32, 0.74), -0.04, 0.22),
    "t2": ((0.55, 0.72, 1.25, 0.85), 0.50, 0.00),
    "flair": ((0.62, 0.80, 0.20, 0.90), 0.00, 0.50),
}


@dataclass(frozen=True)
class Brain:
    """signal  sequence → (Z, Y, X) float32, skull-stripped: 0 outside the brain; axes as data_prep.volume.Volume
    lobes    (Z, Y, X) uint8, the tumour's lobes 1 and 2
    spacing  (z, y, x) in mm
    kind     the tumour's type
    """

    signal: dict[str, np.ndarray]
    lobes: np.ndarray
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
    wet, leaky = rng.integers(1, 3, 2)
    lobes = _tumour(canvas, brain, rng)
    tissue[lobes > 0] = 4
    signal = {}
    for name, (means, wet_adds, leaky_adds) in _SIGNAL.items():
        levels = np.array([0.0, *(mean * rng.normal(1, 0.03) for mean in means)])
        image = levels[tissue] + wet_adds * rng.uniform(0.8, 1.2) * (lobes == wet)
        image += leaky_adds * rng.uniform(0.8, 1.2) * (lobes == leaky)
        image += 0.05 * texture(rng, brain.shape, 1.2)
        image = ndimage.gaussian_filter(image, (0, 0.6, 0.6)) + rng.normal(0, 0.03, brain.shape)
        coil = 1 + 0.12 * texture(rng, brain.shape, size / 4)  # the receiving coil's sensitivity
        signal[name] = np.float32(np.where(brain, np.maximum(image * coil, 0.02), 0) * rng.uniform(200, 1200))
    return Brain(signal, lobes, spacing, TYPES[int(wet != leaky)])


def _tumour(canvas: Canvas, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) lobes 1 and 2, side by side in a direction drawn at random, so that their numbers say nothing."""
    turn, around, out = rng.uniform(0, 2 * np.pi, 2)[:, None], rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
    middle = np.array([rng.uniform(-8, 8), 70 * out * np.sin(around), 55 * out * np.cos(around)])
    apart = 13 * np.array([0, *np.sin(turn[0]), *np.cos(turn[0])])
    lobes = np.zeros(brain.shape, np.uint8)
    for number, side in ((1, -1), (2, 1)):
        radii = (rng.uniform(28, 36), *rng.uniform(11, 15, 2))
        lobes[canvas.ellipsoid(tuple(middle + side * apart), radii) & brain & (lobes == 0)] = number
    return lobes
