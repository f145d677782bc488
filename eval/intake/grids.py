"""Where the slices of a series lie in the patient, and what was drawn on them put back on the grid of their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import CtConfig, GridConfig, ImagesConfig, MriConfig, PrepConfig
from data_prep.schema import read_dataset
from data_prep.volumes import geometry, slicing
from data_prep.volumes.images import Image
from data_prep.volumes.volume import RejectedSeries
from eval.intake.raw import Intake
from meddap.settings import SettingsError, merge

_CONFIGS: dict[str, type[PrepConfig]] = {"CT": CtConfig, "MR": MriConfig, "IMAGE": ImagesConfig}  # by modality


@dataclass(frozen=True)
class Grid:
    """A grid: affine (4, 4) of (x, y, z) indices → RAS mm, and its shape (X, Y, Z)."""

    affine: np.ndarray
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Placed:
    """Where a series lies.

    slices  the grid of its slices, those that were left out included: `order` counts along z
    source  the grid of the file that it was read from; of DICOM, of the axial volume that its images make
    files   DICOM images that it was read from; () for other files, or where nobody names them
    """

    slices: Grid
    source: Grid
    files: tuple[str, ...] = ()

    def drawn(self, planes: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return (X, Y, Z) uint8 on the source's grid of (rows, columns) uint8 planes by order; nearest neighbour.

        Raises SettingsError for planes of another shape than the slices.
        """
        columns, rows, count = self.slices.shape
        volume = np.zeros((count, rows, columns), np.uint8)
        for order, plane in planes.items():
            if plane.shape != (rows, columns) or not 0 <= order < count:
                raise SettingsError(f"slice {order} has {plane.shape} pixels, its manifest says {(rows, columns)}")
            volume[order] = plane
        turned = volume.transpose(2, 1, 0)
        same = turned.shape == self.source.shape
        if same and geometry.same_grid(self.slices.affine, self.source.affine, turned.shape):
            return turned
        return geometry.place(turned, self.slices.affine, self.source.affine, self.source.shape, order=0)


def places(intake: Intake) -> dict[str, Placed]:
    """Return where each series lies, by its hash; empty where the manifest does not say it (older data sets)."""
    known = {stack: rows for stack, rows in intake.series.items() if "affine" in rows[0]}
    if not known:
        return {}
    made = read_dataset(intake.root)["made_with"]
    config = merge(_CONFIGS[made["modality"]], (f"{intake.root}/dataset.json", made.get("settings", {})))
    names = intake.names.rows
    return {stack: _placed(rows, config, names.get(rows[0]["source"])) for stack, rows in known.items()}


def _placed(rows: Sequence[Mapping[str, Any]], config: PrepConfig, key: Mapping[str, Any] | None) -> Placed:
    """Return where a series lies: `rows` of its manifest, the reference first, and the key's row of that."""
    depth, height, width = rows[0]["shape"]
    volume = Grid(np.array(rows[0]["affine"], np.float64), (width, height, depth))
    slices = sliced(volume, config.grid)
    if key is None:
        return Placed(slices, volume)
    if key["dicom"]:
        return Placed(slices, volume, tuple(key["files"]))
    try:
        channel = tuple(key["channel"]) if key["channel"] else None
        image = Image(Path(key["files"][0]), config, channel, key["orientation"])
    except (RejectedSeries, OSError, IndexError):  # within an archive, or gone: the volume's grid is as true
        return Placed(slices, volume)
    return Placed(slices, Grid(image.affine, image.shape))


def sliced(volume: Grid, config: GridConfig) -> Grid:
    """Return the grid of the slices that sharding cuts from a volume."""
    if not (config.in_plane_mm or config.size):
        return volume
    width, height, depth = volume.shape
    lengths = np.linalg.norm(volume.affine[:3, :3], axis=0)
    fitted = slicing.Resampler((height, width), (float(lengths[1]), float(lengths[0])), config)
    rows, columns = fitted.shape
    return Grid(fitted.affine(volume.affine), (columns, rows, depth))
