"""Synthetic brains in four MR sequences with a tumour of one of two types, which only two sequences together show.

A tumour's tissue has two properties, drawn independently of each other: its water, high or low (bright or dark in T2
and, more faintly, dark or bright in T1), and its protein, high or low (bright or dark in FLAIR and, more faintly, in T1
with contrast). In `match` both are high or both low, in `mismatch` (after the T2-FLAIR mismatch sign) one is high and
the other low. So each type has as many bright as dark tumours in every sequence: one sequence alone, or the two of one
property, carry no information about the type. One of T1 and T2 together with one of T1c and FLAIR determines it, and
if a sequence is missing the other one of its property can replace it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_prep.synthetic.phantom import Canvas, texture

TYPES = ("match", "mismatch")
PROPERTIES = ("water", "protein")
SEQUENCES = ("t1", "t1c", "t2", "flair")
# signal of white matter, grey matter and cerebrospinal fluid; the property shown; what much and little of it add
_SIGNAL = {
    "t1": ((1.00, 0.78, 0.30), "water", (-0.42, 0.36)),
    "t1c": ((1.00, 0.80, 0.32), "protein", (0.42, -0.40)),
    "t2": ((0.55, 0.72, 1.25), "water", (0.50, -0.38)),
    "flair": ((0.62, 0.80, 0.20), "protein", (0.50, -0.38)),
}
_AREA = 800.0, 2600.0  # mm² of a tumour in its middle slice
_STRENGTH = 0.7, 1.3  # range of a property's strength, which is the same in the two sequences that show it


@dataclass(frozen=True)
class Brain:
    """signal  sequence → (Z, Y, X) float32, skull-stripped: 0 outside the brain; axes as in volumes.Volume
    tumour   (Z, Y, X) uint8, 1 in the tumour
    high     property → whether the tumour has much of it
    spacing  (z, y, x) in mm
    kind     the tumour's type
    """

    signal: dict[str, np.ndarray]
    tumour: np.ndarray
    high: dict[str, bool]
    spacing: tuple[float, float, float]
    kind: str


def make(rng: np.random.Generator, slices: int, size: int) -> Brain:
    """Make one patient; everything is drawn from `rng`."""
    spacing = (float(rng.uniform(6, 8)), *(float(rng.uniform(175, 190) / size),) * 2)
    canvas = Canvas((slices, size, size), spacing)
    depth, breadth, height = (radius * rng.uniform(0.92, 1.08) for radius in (78, 62, 62))
    brain = np.broadcast_to(canvas.ellipsoid((0, 0, 0), (height, depth, breadth)), canvas.labels.shape)
    tissue = np.where(brain, 2, 0)
    folds = 5 * texture(rng, brain.shape, 1.5)
    tissue[brain & (ndimage.distance_transform_edt(brain, sampling=spacing) > 11 + folds)] = 1
    for side in (-1, 1):  # the lateral ventricles
        tissue[canvas.ellipsoid((4, -6, side * 11), (24, rng.uniform(22, 32), rng.uniform(5, 9))) & brain] = 3
    tumour = _tumour(canvas, brain, rng)
    high = {name: bool(rng.integers(2)) for name in PROPERTIES}
    strength = {name: rng.uniform(*_STRENGTH) for name in PROPERTIES}
    signal = {}
    for name, (means, shown, (much, little)) in _SIGNAL.items():
        levels = np.array([0.0, *(mean * rng.normal(1, 0.03) for mean in means)])
        adds = (much if high[shown] else little) * strength[shown] * rng.uniform(0.9, 1.1)
        image = levels[tissue] + adds * tumour
        image += 0.05 * texture(rng, brain.shape, 1.2)
        image = ndimage.gaussian_filter(image, (0, 0.6, 0.6)) + rng.normal(0, 0.03, brain.shape)
        coil = 1 + 0.12 * texture(rng, brain.shape, size / 4)  # the receiving coil's sensitivity
        signal[name] = np.float32(np.where(brain, np.maximum(image * coil, 0.02), 0) * rng.uniform(200, 1200))
    return Brain(signal, np.uint8(tumour), high, spacing, TYPES[int(high["water"] != high["protein"])])


def _tumour(canvas: Canvas, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the (Z, Y, X) mask of an ellipsoid somewhere in the brain."""
    around, out, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.45), rng.uniform(0.85, 1.18)
    middle = (rng.uniform(-6, 6), 70 * out * np.sin(around), 55 * out * np.cos(around))
    radius = np.sqrt(rng.uniform(*_AREA) / np.pi)
    return canvas.ellipsoid(middle, (rng.uniform(28, 36), radius * aspect, radius / aspect)) & brain
