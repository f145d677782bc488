"""Writes DICOM files for tests: any voxels, any geometry, classic or enhanced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

AXIAL = (1, 0, 0, 0, 1, 0)


def header(modality: str = "CT", **attributes: object) -> Dataset:
    """What all images of a series share; attributes by keyword replace or add, None removes."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.Modality, dataset.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "someone", "1.2.3", "1.2.3.4"
    dataset.FrameOfReferenceUID, dataset.PixelSpacing = "1.2.3.9", [2, 2]
    dataset.ImageOrientationPatient, dataset.PhotometricInterpretation = list(AXIAL), "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = 1
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    put(dataset, attributes)
    return dataset


def put(dataset: Dataset, attributes: dict[str, object]) -> None:
    """Set attributes by keyword; None removes."""
    for name, value in attributes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)


def save(dataset: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path,
    stored: np.ndarray,
    positions: Sequence[Sequence[float]] | None = None,
    modality: str = "CT",
    each: Sequence[dict] | None = None,
    names: Sequence[str] | None = None,
    **attributes: object,
) -> list[Path]:
    """One file per plane of (Z, rows, columns) stored values.

    positions  ImagePositionPatient of each plane, mm, LPS; 3 mm apart along the head axis unless given
    each       attributes of single planes
    """
    paths = []
    for place, plane in enumerate(stored):
        dataset = header(modality, **attributes)
        put(dataset, (each or [{}] * len(stored))[place])
        dataset.SOPInstanceUID = generate_uid(
            entropy_srcs=[str(folder), dataset.get("SeriesInstanceUID", ""), str(place)]
        )
        dataset.InstanceNumber = dataset.get("InstanceNumber", place + 1)
        dataset.ImagePositionPatient = list(positions[place] if positions is not None else (0, 0, 3 * place))
        dataset.Rows, dataset.Columns = plane.shape
        kind = "<i2" if dataset.PixelRepresentation else "<u2"
        dataset.PixelData = plane.astype(kind).tobytes()
        paths.append(save(dataset, folder / (names[place] if names else f"{place:04d}")))
    return paths


def enhanced(
    path: Path,
    stored: np.ndarray,
    positions: Sequence[Sequence[float]],
    modality: str = "CT",
    each: Sequence[dict[str, dict]] | None = None,
    **attributes: object,
) -> Path:
    """One multi-frame file of (frames, rows, columns) stored values.

    each  further functional groups of single frames: sequence → attributes
    """
    dataset = header(modality, RescaleSlope=None, RescaleIntercept=None) if modality == "CT" else header(modality)
    dataset.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    shared = Dataset()
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=dataset.ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [item(PixelSpacing=dataset.PixelSpacing, SliceThickness=3)]
    shared.PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=0)]
    for name in ("ImageOrientationPatient", "PixelSpacing"):
        del dataset[name]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place, position in enumerate(positions):
        groups = Dataset()
        groups.PlanePositionSequence = [item(ImagePositionPatient=list(position))]
        for name, values in (each[place] if each else {}).items():
            setattr(groups, name, [item(**values)])
        frames.append(groups)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames, (dataset.Rows, dataset.Columns) = len(stored), stored.shape[1:]
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.PixelData = stored.astype("<i2").tobytes()
    put(dataset, attributes)
    return save(dataset, path)


def item(**attributes: object) -> Dataset:
    """Return an item of a sequence."""
    item = Dataset()
    put(item, attributes)
    return item
