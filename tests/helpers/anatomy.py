"""Slices of invented bodies, each patient with organs of their own that change slowly from slice to slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_prep.schema import Slice
from helpers.datasets import identity


def body(patient: int, order: int, size: int = 96, **meta: object) -> Slice:
    """Slice `order` of a patient, 5 mm above the one before; the noise differs from slice to slice."""
    rng = np.random.default_rng([patient, 7])
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    width, depth = rng.uniform(0.38, 0.45), rng.uniform(0.26, 0.34)
    inside = (rows / depth) ** 2 + (columns / width) ** 2 < 1
    pixels = np.where(inside, -80.0, -1000.0)
    pixels[(rows / (depth - 0.03)) ** 2 + (columns / (width - 0.03)) ** 2 < 1] = 40
    for _ in range(14):
        centre, radii = rng.uniform(-0.25, 0.25, 2), rng.uniform(0.03, 0.12, 2)
        hu, drift = rng.choice([-100, -60, 100, 150, 200, 240]), rng.uniform(-0.04, 0.04, 2)
        at = (rows - centre[0] - drift[0] * order) / radii[0], (columns - centre[1] - drift[1] * order) / radii[1]
        pixels[inside & (at[0] ** 2 + at[1] ** 2 < 1)] = hu
    pixels += np.random.default_rng([patient, order, 8]).normal(0, 8, pixels.shape)
    return Slice(
        pixels=np.rint(pixels).astype(np.int16)[None], sequences=("ct",), spacing=(4.0, 4.0), position=5.0 * order,
        **identity(f"body {patient}", order), box=(0, size, 0, size), meta=dict(meta),
    )  # fmt: skip


def copied(sample: Slice, patient: int, **changes: object) -> Slice:
    """The slice under the id of another patient, who is invented too."""
    other = body(patient, sample.order)
    return replace(sample, subject=other.subject, series=other.series, key=other.key, **changes)
