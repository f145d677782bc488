"""Drawn slices put together to volumes again, and compared with the true ones patient by patient, in mm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from eval.config import DrawingConfig
from eval.data import images
from eval.data.cohorts import Cohort
from eval.data.examples import Examples
from eval.statistics import surfaces
from eval.statistics.predictions import Tabled
from meddap.settings import SettingsError

Draw = Callable[[Cohort, np.ndarray], torch.Tensor]  # rows of a cohort → (n, O, R, R) in 0…1 on the encoder's squares
_ROWS = 32  # slices at a time


def measure(draw: Draw, thresholds: np.ndarray, test: Cohort, config: DrawingConfig) -> Tabled:
    """Return Dice, IoU and, if wanted, HD95 and normalised surface distance of every patient and structure.

    Slices of one study are a volume, in the pictures' own pixels; a structure that is unlabelled in a study has no
    figure there, and pixels that nobody annotated count as empty. A patient's figure is the mean over the patient's
    studies.
    """
    examples = test.examples
    patients = np.unique(examples.subjects)
    kept: dict[str, list[np.ndarray]] = {patient: [] for patient in patients}
    for rows in studies(examples):
        found = _compare(draw, thresholds, test, rows, config)
        kept[examples.subjects[rows[0]]].append(np.where(examples.annotated[rows].any(axis=0), found, np.nan))
    values = np.stack([_mean(np.stack(kept[patient])) for patient in patients], axis=1)  # (metrics, K, O)
    names = surfaces.METRICS if config.surfaces else surfaces.METRICS[:2]
    return Tabled({name: each[None] for name, each in zip(names, values)}, patients, test.names)


def studies(examples: Examples) -> Iterator[np.ndarray]:
    """Yield the rows of each study, in the order of its slices."""
    order = np.lexsort((examples.orders, examples.studies))
    yield from np.split(order, np.flatnonzero(np.diff(np.unique(examples.studies[order], return_inverse=True)[1])) + 1)


def spacing(examples: Examples, rows: np.ndarray) -> tuple[float, float, float]:
    """Return (slice, row, column) in mm; the first is the median step between slices, 1 for a single slice."""
    steps = np.abs(np.diff(examples.positions[rows]))
    step = float(np.median(steps)) if len(steps) and np.isfinite(steps).all() and np.median(steps) > 0 else 1.0
    row, column = examples.read(rows[0]).spacing
    return step, float(row), float(column)


def _compare(draw: Draw, thresholds: np.ndarray, test: Cohort, rows: np.ndarray, config: DrawingConfig) -> np.ndarray:
    """Return (metrics, O) of one study. Raises SettingsError where its slices or label maps differ in shape."""
    examples = test.examples
    shape: tuple[int, ...] | None = None
    drawn, true = ([Pieces() for _ in examples.values] for _ in range(2))
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        for place, (row, maps) in enumerate(zip(some, draw(test, some)), start):
            picture = examples.read(row)
            plane = picture.pixels.shape[1:]
            shape = shape or plane
            labelmap = np.zeros(plane, np.uint8) if picture.labelmap is None else picture.labelmap
            if labelmap.shape != plane:
                raise SettingsError(
                    f"{examples.keys[row]}: label map of {labelmap.shape} pixels on an image of {plane}"
                )
            if plane != shape:
                raise SettingsError(
                    f"study {examples.studies[row]}: its slices differ in shape, so they are not a volume"
                )
            above = images.to_picture(maps, picture).numpy() > thresholds[:, None, None]
            annotated = ~np.isin(labelmap, examples.ignored) if examples.ignored else True
            for number, value in enumerate(examples.values):
                drawn[number].add(place, above[number] & annotated)
                true[number].add(place, labelmap == value)
    assert shape is not None  # a study has slices
    height, width = shape
    unit, whole, columns = spacing(examples, rows), (len(rows), height, width), []
    try:
        for pair in zip(drawn, true):
            mine, its = boxed(*pair)
            columns.append(surfaces.compare(mine, its, unit, config.tolerance_mm, config.surfaces, whole))
    except ValueError as error:
        raise SettingsError(f"study {examples.studies[rows[0]]}: {error}") from error
    return np.stack(columns, axis=1)


class Pieces:
    """A structure of a volume slice by slice, each cut to its box, so that many structures of a large scan fit."""

    def __init__(self) -> None:
        self.cut: list[tuple[tuple[slice, slice], int, np.ndarray]] = []

    def add(self, place: int, mask: np.ndarray) -> None:
        """Add the (H, W) bool mask of slice `place`; nothing is kept of an empty one."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            self.cut.append((box, place, mask[box].copy()))


def boxed(*several: Pieces) -> list[np.ndarray]:
    """Return each as (z, h, w) bool in the smallest box around them all; one empty voxel where there is nothing."""
    every = [piece for pieces in several for piece in pieces.cut]
    if not every:
        return [np.zeros((1, 1, 1), bool) for _ in several]
    places = [place for _, place, _ in every]
    first = [min(places), *(min(box[axis].start for box, *_ in every) for axis in (0, 1))]
    last = [max(places) + 1, *(max(box[axis].stop for box, *_ in every) for axis in (0, 1))]
    found = []
    for pieces in several:
        volume = np.zeros(np.subtract(last, first), bool)
        for (rows, columns), place, mask in pieces.cut:
            top, left = rows.start - first[1], columns.start - first[2]
            volume[place - first[0], top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        found.append(volume)
    return found


def _mean(table: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, NaN left out; NaN where nothing is left."""
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
