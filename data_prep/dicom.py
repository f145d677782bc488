"""Single-frame DICOM CT series (PS3.3, C.7.6.2 for the geometry, C.11.1 for the rescale)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage

from data_prep.config import CtConfig
from data_prep.schema import AIR_HU
from data_prep.volume import RejectedSeries, Volume, canonical

_PREAMBLE = 128
# What pydicom and its plugins raise for files that are cut, mislabelled or compressed beyond reading.
_DAMAGED = (
    InvalidDicomError,
    AttributeError,
    KeyError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    IndexError,
    OverflowError,
    MemoryError,
)
_TEXT = re.compile(r"[A-Za-z0-9 ._/+-]{1,32}")
# Attribute → name under which it is kept. Nothing else of a header leaves this file.
_KEPT = {
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ConvolutionKernel": "kernel",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "PatientSex": "sex",
}
_KEPT_NUMBERS = {"KVP": "kvp", "SliceThickness": "slice_thickness_mm"}


@dataclass(frozen=True)
class Header:
    """What discovery needs of one file."""

    path: Path
    series: str
    patient: str


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM prefix (PS3.10, 7.1)."""
    with open(path, "rb") as file:
        start = file.read(_PREAMBLE + 4)
    return start[_PREAMBLE:] == b"DICM"


def read_header(path: Path) -> Header:
    """Series and patient of a file. Raises RejectedSeries where it is no readable DICOM image."""
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "PatientID"])
        series, patient = str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("PatientID", "") or "")
    except _DAMAGED as error:
        raise RejectedSeries(f"damaged DICOM file ({type(error).__name__})") from error
    if not series:
        raise RejectedSeries("DICOM file without SeriesInstanceUID")
    return Header(path, series, patient)


def read_series(paths: Sequence[Path], config: CtConfig) -> Volume:
    """The volume of one CT series, slices ordered along their normal by position.

    Raises RejectedSeries for what is no plain axial CT volume: another modality, a localizer, colour,
    several frames in a file, missing geometry, gantry tilt, missing or duplicate slices.
    """
    try:
        slices = [_header(path) for path in paths]
        for dataset in slices:
            _check_kind(dataset)
        slices, affine, spacing = _order(slices, config)
        voxels = np.stack([_hounsfield(pydicom.dcmread(dataset.filename)) for dataset in slices], axis=-1)
    except RejectedSeries:
        raise
    except PermissionError:
        raise
    except (OSError, *_DAMAGED) as error:
        raise RejectedSeries(f"damaged or unreadable DICOM ({type(error).__name__})") from error
    turned, affine = canonical(voxels, affine)
    return Volume(
        turned, tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0)[::-1]), affine, "CT", _meta(slices[0])
    )


def _header(path: Path) -> pydicom.Dataset:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    dataset.filename = str(path)
    return dataset


def _check_kind(dataset: pydicom.Dataset) -> None:
    if (modality := dataset.get("Modality", "none")) != "CT":
        raise RejectedSeries(f"modality {_clean(modality)}, not CT")
    if "LOCALIZER" in (kind := [str(word).upper() for word in dataset.get("ImageType", [])]):
        raise RejectedSeries("localizer")
    if dataset.get("SOPClassUID") != CTImageStorage or int(dataset.get("NumberOfFrames", 1)) > 1:
        raise RejectedSeries("no single-frame CT image (enhanced, multi-frame or secondary capture)")
    if "SECONDARY" in kind and "DERIVED" in kind:
        raise RejectedSeries("derived series")
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") != "MONOCHROME2":
        raise RejectedSeries(
            f"pixels are {_clean(dataset.get('PhotometricInterpretation', 'of no stated kind'))}, not MONOCHROME2"
        )
    if dataset.get("BurnedInAnnotation") == "YES":
        raise RejectedSeries("BurnedInAnnotation is YES")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        if dataset.get(name) is None:
            raise RejectedSeries(f"no {name}")


def _order(slices: list[pydicom.Dataset], config: CtConfig):
    """Slices in order of position, the (x, y, z) → RAS affine and the spacing between slices."""
    first = slices[0]
    geometry = {(tuple(s.ImageOrientationPatient), tuple(s.PixelSpacing), s.Rows, s.Columns) for s in slices}
    if len(geometry) > 1:
        raise RejectedSeries(f"{len(geometry)} different grids in one series")
    if len(slices) < config.min_slices:
        raise RejectedSeries(f"{len(slices)} slices, fewer than min_slices={config.min_slices}")
    along_row, along_column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    positions = np.array([s.ImagePositionPatient for s in slices], float)
    places = positions @ normal
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    if (steps < 1e-3).any():
        raise RejectedSeries(f"{int((steps < 1e-3).sum())} slices lie at the position of another")
    gap = float(np.median(steps))
    if steps.max() > config.max_gap * gap or steps.min() * config.max_gap < gap:
        raise RejectedSeries(
            f"slices {steps.min():.2f} to {steps.max():.2f} mm apart: some are missing or the spacing varies"
        )
    travel = positions[order[-1]] - positions[order[0]]
    tilt = np.degrees(np.arccos(np.clip(abs(travel @ normal) / np.linalg.norm(travel), 0, 1)))
    if tilt > config.max_tilt_degrees:
        raise RejectedSeries(f"gantry tilt of {tilt:.1f} degrees")
    rows, columns = (float(length) for length in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * columns, along_column * rows
    affine[:3, 2], affine[:3, 3] = travel / (len(slices) - 1), positions[order[0]]
    affine[:2] *= -1  # DICOM counts to the left and back (LPS), the affine to the right and front (RAS)
    return [slices[number] for number in order], affine, gap


def _hounsfield(dataset: pydicom.Dataset) -> np.ndarray:
    """(X, Y) float32 HU of one image; padding becomes air (PS3.3, C.7.5.1.1.2)."""
    stored = dataset.pixel_array
    hu = stored.astype(np.float32) * np.float32(dataset.RescaleSlope) + np.float32(dataset.RescaleIntercept)
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        hu[(stored >= min(padding, limit)) & (stored <= max(padding, limit))] = AIR_HU
    return hu.T


def _meta(dataset: pydicom.Dataset) -> dict[str, object]:
    """The whitelisted header fields; text that holds more than a short code is left out."""
    kept: dict[str, object] = {
        name: text for attribute, name in _KEPT.items() if (text := _clean(dataset.get(attribute)))
    }
    for attribute, name in _KEPT_NUMBERS.items():
        if dataset.get(attribute) is not None:
            kept[name] = float(dataset.get(attribute))
    kept["contrast"] = bool(dataset.get("ContrastBolusAgent"))
    age = re.fullmatch(r"0*(\d{1,3})Y", str(dataset.get("PatientAge", "")))
    if age:
        kept["age_decade"] = min(int(age[1]) // 10 * 10, 90)
    return kept


def _clean(value: object) -> str:
    text = str(value or "").strip()
    return text if _TEXT.fullmatch(text) else ""
