"""Synthetic trunk anatomy: ellipsoids with HU, texture and noise, varied from patient to patient.

Liver and spleen share their HU and differ in place and shape; kidneys, heart and aorta differ in contrast, spine and
cord in size: features must learn more than a threshold. Patients differ by fat, by arms beside the trunk and by how
they lie, so that outline and grey values alone tell less of which organs a slice holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

ARMS_DOWN = 0.3  # share of the patients whose arms lie beside the trunk


@dataclass(frozen=True)
class Phantom:
    """hu, labels (Z, Y, X), axes as data_prep.volumes.volume.Volume; spacing (z, y, x) in mm.

    Labels: 1 lung, 2 liver, 3 spleen, 4 right kidney, 5 left kidney, 6 heart, 7 aorta, 8 spine.
    """

    hu: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]


class Canvas:
    """A grid of patient coordinates in mm: x to the left, y to the back, z to the head; the body's centre is 0."""

    def __init__(self, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
        axes = [(np.arange(count) - (count - 1) / 2) * step for count, step in zip(shape, spacing)]
        self.z, self.y, self.x = (axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(axes))
        self.hu = np.full(shape, -1000.0, np.float32)
        self.labels = np.zeros(shape, np.uint8)

    def turn(self, angle: float) -> None:
        """Turn the patient about the z axis, in radians; x and y become (1, Y, X)."""
        cos, sin = np.cos(angle), np.sin(angle)
        self.y, self.x = cos * self.y - sin * self.x, sin * self.y + cos * self.x

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """Return the mask of an ellipsoid, centre and radii as (z, y, x); an infinite radius makes a cylinder."""
        z, y, x = ((axis - c) / r for axis, c, r in zip((self.z, self.y, self.x), centre, radii))
        return z * z + y * y + x * x < 1

    def paint(self, where: np.ndarray, hu: float, label: int = 0) -> None:
        """Set HU, and the label unless it is 0, in a mask."""
        self.hu[where] = hu
        if label:
            self.labels[where] = label


def make(rng: np.random.Generator, slices: int, size: int) -> Phantom:
    """Make one patient. Size, position, HU, noise and the range along the axis are drawn from `rng`."""
    spacing = (float(rng.uniform(5, 8)), *(float(rng.uniform(380, 430) / size),) * 2)
    canvas = Canvas((slices, size, size), spacing)
    stature = rng.uniform(0.88, 1.12)
    # where along the trunk the scan lies: 0 is the dome of the liver
    canvas.z = canvas.z + rng.uniform(-45, 30)
    canvas.y, canvas.x = canvas.y - rng.uniform(-12, 4), canvas.x - rng.uniform(-12, 12)
    upright = canvas.y
    canvas.turn(np.deg2rad(rng.uniform(-12, 12)))
    inf = np.inf
    waist = 1 + 0.08 * np.sin(canvas.z / 120 + rng.uniform(0, 3))
    depth, breadth = 82 * stature * waist, 134 * stature * waist  # of the muscle; fat lies around it
    fat = rng.uniform(5, 35)
    body = (canvas.y / (depth + 0.9 * fat)) ** 2 + (canvas.x / (breadth + fat)) ** 2 < 1
    muscle = (canvas.y / depth) ** 2 + (canvas.x / breadth) ** 2 < 1
    skin, flesh = rng.normal(-100, 8), rng.normal(45, 5)
    if rng.random() < ARMS_DOWN:  # they touch the trunk, and the field of view may cut them
        for side in (-1, 1):
            _arm(canvas, side * (breadth.max() + fat + 22), rng.uniform(-25, 15), skin, flesh, rng)
    canvas.paint(body, skin)
    canvas.paint(muscle, flesh)

    def organ(label: int, hu: float, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> None:
        z, y, x = (stature * c + rng.normal(0, 4) for c in centre)
        height, depth, breadth = (stature * r * rng.uniform(0.88, 1.12) for r in radii)
        canvas.paint(canvas.ellipsoid((z, y, x), (height, depth, breadth)) & muscle, hu, label)

    contrast = rng.uniform(0, 90)
    solid = rng.normal(60, 5) + contrast * 0.5
    for side in (-1, 1):
        organ(1, rng.normal(-830, 25), (95, -5, side * 72), (92, 62, 52))
    organ(6, 45 + contrast, (58, -28, 14), (46, 36, 42))
    organ(2, solid, (-10, -8, -62), (72, 62, 66))
    organ(3, solid, (-6, 32, 92), (42, 30, 26))
    organ(4, 35 + contrast * 1.2, (-82, 42, -58), (48, 22, 24))
    organ(5, 35 + contrast * 1.2, (-70, 44, 60), (48, 22, 24))
    organ(7, 45 + contrast * 1.5, (0, 36, 12), (inf, 11, 11))
    organ(8, rng.normal(230, 25), (0, 62, 0), (inf, 20, 22))
    canvas.paint(canvas.ellipsoid((0, 82 * stature, 0), (inf, 8, 9)), 35)  # the canal, and the cord in it
    _ribs(canvas, muscle, stature, rng)
    vessels = texture(rng, canvas.hu.shape, 1.2) > 2.1
    canvas.hu[vessels & (canvas.labels == 1)] = -50
    canvas.hu += np.where(body, 9 * texture(rng, canvas.hu.shape, 1.6), 0).astype(np.float32)
    # the table lies below the back
    plate = np.abs(upright - depth.max() - 0.9 * fat - 14) < 4
    canvas.hu[np.broadcast_to(plate & (np.abs(canvas.x) < 190), canvas.hu.shape) & (canvas.hu < -900)] = -350
    blurred = ndimage.gaussian_filter(canvas.hu, (0, 0.6, 0.6))
    noisy = blurred + rng.normal(0, rng.uniform(6, 22), canvas.hu.shape)
    return Phantom(np.clip(np.rint(noisy), -1024, 3071), canvas.labels, spacing)


def _arm(canvas: Canvas, x: float, y: float, skin: float, flesh: float, rng: np.random.Generator) -> None:
    """Paint an arm that hangs beside the trunk: fat, muscle and a bone, in mm of the turned patient."""
    radius = rng.uniform(24, 32)
    for share, hu in ((1.0, skin), (0.8, flesh), (0.3, 400.0)):
        canvas.paint(canvas.ellipsoid((0, y, x), (np.inf, radius * share, radius * share)), hu)


def _ribs(canvas: Canvas, muscle: np.ndarray, stature: float, rng: np.random.Generator) -> None:
    """Paint twelve pairs of ribs, as points of bone where a slice cuts them."""
    turn = np.arctan2(canvas.y, canvas.x)
    height = canvas.z - 26 * stature * np.sin(turn)
    rim = ndimage.binary_erosion(muscle, np.ones((1, 3, 3)), iterations=2, border_value=0) ^ muscle
    canvas.paint(rim & (np.mod(height + rng.uniform(0, 25), 26) < 9), 320)


def texture(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Return smooth noise of unit standard deviation."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width)
    return noise / noise.std()
