"""DICOM segmentations (PS3.3, A.51) as label maps."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels

from data_prep.config import PrepConfig
from data_prep.dicom.files import open_file
from data_prep.dicom.whitelist import term
from data_prep.volumes.errors import unless_trouble, without_panics
from data_prep.volumes.volume import RejectedSeries, check_size


def read(path: str, config: PrepConfig) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return (I, J, K) uint8 labels on the segmentation's own grid, its affine to RAS mm, and notes.

    A segment gets the value that `labels` of the configuration has for its SegmentLabel, else its number. Where
    segments overlap the later one wins; the notes count such voxels. Planes that the file leaves out are 0, and so is
    the background of a LABELMAP, whose pixels are numbers of segments. Raises RejectedSeries, UnreadableError.
    """
    try:
        with open_file(path) as file:
            return _read(file, config)
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(f"damaged or unreadable DICOM-SEG ({type(error).__name__})") from error


def _read(file: BinaryIO, config: PrepConfig) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    values = _values(dataset, config.labels)
    kind = term(dataset.get("SegmentationType"), {"BINARY", "FRACTIONAL", "LABELMAP"}, "unknown")
    if kind == "unknown":
        raise RejectedSeries("segmentation of an unknown type; BINARY, FRACTIONAL and LABELMAP are read")
    threshold = int(dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.5
    shared = dataset.SharedFunctionalGroupsSequence[0]
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    positions = np.array([_macro(g, shared, "PlanePositionSequence").ImagePositionPatient for g in groups], float)
    axes = np.array(_macro(groups[0], shared, "PlaneOrientationSequence").ImageOrientationPatient, float)
    along_row, along_column = axes.reshape(2, 3)
    measures = _macro(groups[0], shared, "PixelMeasuresSequence")
    rows, columns = (float(length) for length in measures.PixelSpacing)
    normal = np.cross(along_row, along_column)
    places = positions @ normal
    step = _step(places, float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1))
    planes = np.rint((places - places.min()) / step).astype(int)
    if np.abs(places.min() + planes * step - places).max() > 0.1 * step:
        raise RejectedSeries("frames of the segmentation are not evenly spaced")
    check_size((int(planes.max()) + 1, dataset.Rows, dataset.Columns), config.limits.volume_gb)
    labels, overlapping = np.zeros((planes.max() + 1, dataset.Rows, dataset.Columns), np.uint8), 0
    file.seek(0)
    for plane, group, pixels in zip(planes, groups, without_panics(iter_pixels(file))):
        if kind == "LABELMAP":
            labels[plane] = _values_of(pixels, values)
            continue
        number = int(_macro(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        inside = pixels > threshold
        overlapping += int((labels[plane][inside] > 0).sum())
        labels[plane][inside] = values[number]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * columns, along_column * rows, normal * step
    affine[:3, 3] = positions[places.argmin()]
    affine[:2] *= -1  # LPS to RAS
    notes: dict[str, object] = {"overlapping_label_voxels": overlapping} if overlapping else {}
    return labels.transpose(2, 1, 0), affine, notes


def _values(dataset: pydicom.Dataset, names: dict[str, str]) -> dict[int, int]:
    """Return segment number → label value."""
    by_name = {name.strip().lower(): int(value) for value, name in names.items()}
    values = {}
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        values[number] = by_name.get(str(segment.get("SegmentLabel") or "").strip().lower(), number)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and dataset.get("SegmentationType") == "LABELMAP":
        values[int(padding)] = 0  # the number that stands for background
    if max(values.values()) > 255:
        raise RejectedSeries("more than 255 segments; a label map holds 255")
    return values


def _values_of(pixels: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """Return (rows, columns) uint8 label values of pixels that are numbers of segments.

    Raises RejectedSeries for a number other than 0 without a segment.
    """
    numbers = np.unique(pixels)
    if strange := [int(number) for number in numbers if number and int(number) not in values]:
        raise RejectedSeries(f"pixels of segment {strange[0]}, which the segmentation does not describe")
    table = np.array([values.get(int(number), 0) for number in numbers], np.uint8)
    return table[np.searchsorted(numbers, pixels)]


def _macro(group: pydicom.Dataset, shared: pydicom.Dataset, name: str) -> pydicom.Dataset:
    return (group.get(name) or shared.get(name))[0]


def _step(places: np.ndarray, declared: float) -> float:
    """Return the smallest distance of neighbouring planes; the declared one if there is one plane only."""
    apart = np.diff(np.unique(np.round(places, 3)))
    return float(apart.min()) if len(apart) else declared
