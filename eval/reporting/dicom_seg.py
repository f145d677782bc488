"""Drawn structures as DICOM segmentations (PS3.3, A.51) of their source images, by highdicom."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from data_prep.volumes import geometry
from eval.data.files import FileError
from eval.intake.grids import Placed
from meddap import __version__
from meddap.disk import write_atomic
from meddap.settings import SettingsError

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes run to the left and to the back
_SCHEME = "99MEDDAP"
# of a source image; the standard lets them be empty, and many files lack them
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def check() -> None:
    """Raise FileError without highdicom."""
    _highdicom()


def write(
    path: Path, placed: Placed, masks: Mapping[int, np.ndarray], names: Sequence[str], values: Sequence[int], by: str
) -> str:
    """Write a segmentation with a segment per structure, on the planes of the source images; return "".

    masks          order of a slice → (O, rows, columns) bool
    names, values  of the O structures
    by             what drew them
    Where that cannot be, return why: the source is not DICOM, its images hold several frames or several volumes.
    """
    try:
        sources = _sources(placed)
    except SettingsError as error:
        return f"no DICOM segmentation: {error}"
    drawn = []
    for number in range(len(names)):
        volume = _volume(placed, {order: each[number] for order, each in masks.items()})
        drawn.append(np.stack([_on_plane(volume, placed.slices.affine, image) for image in sources]))
    try:
        payload = _encoded(sources, np.stack(drawn, axis=-1), names, values, by)
    except (AttributeError, ValueError, TypeError) as error:  # what highdicom makes of headers that lack something
        return f"no DICOM segmentation: highdicom refuses its source ({type(error).__name__}: {error})".splitlines()[0]
    write_atomic(path, payload)
    return ""


def _sources(placed: Placed) -> list[pydicom.Dataset]:
    """Return the images of one frame whose planes lie in the volume, from its first slice on."""
    if not placed.files:
        raise SettingsError("its source is not DICOM")
    inside: dict[int, pydicom.Dataset] = {}
    back = np.linalg.inv(placed.slices.affine)
    for file in placed.files:
        try:
            image = pydicom.dcmread(file, force=True)
            centre = _plane(image) @ [(image.Columns - 1) / 2, (image.Rows - 1) / 2, 0, 1]
        except (AttributeError, OSError, pydicom.errors.InvalidDicomError, TypeError):
            continue  # no image, or without a place
        if int(image.get("NumberOfFrames") or 1) > 1:
            raise SettingsError("its images hold several frames")
        height = float((back @ centre)[2])
        order = round(height)
        if abs(height - order) < 0.05 and 0 <= order < placed.slices.shape[2]:
            if order in inside:
                raise SettingsError("its series holds several volumes")
            for name in _MAY_BE_EMPTY:
                if name not in image:
                    setattr(image, name, "")
            inside[order] = image
    if not inside:
        raise SettingsError("none of its images lies in the volume")
    return [inside[order] for order in sorted(inside)]


def _plane(image: pydicom.Dataset) -> np.ndarray:
    """Return (4, 4): column, row, 0 → RAS mm; the third axis is the normal."""
    across, down = (np.array(image.ImageOrientationPatient[at : at + 3], np.float64) for at in (0, 3))
    row, column = (float(value) for value in image.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * column, down * row, np.cross(across, down)
    affine[:3, 3] = np.array(image.ImagePositionPatient, np.float64)
    return _TO_RAS @ affine


def _volume(placed: Placed, planes: dict[int, np.ndarray]) -> np.ndarray:
    """Return (X, Y, Z) uint8 on the slices' grid."""
    columns, rows, count = placed.slices.shape
    volume = np.zeros((count, rows, columns), np.uint8)
    for order, plane in planes.items():
        volume[order] = plane
    return volume.transpose(2, 1, 0)


def _on_plane(volume: np.ndarray, affine: np.ndarray, image: pydicom.Dataset) -> np.ndarray:
    """Return (Rows, Columns) uint8 of a volume on the plane of an image, nearest neighbour."""
    shape = int(image.Columns), int(image.Rows), 1
    return geometry.place(volume, affine, _plane(image), shape, order=0)[:, :, 0].T


def _encoded(
    sources: list[pydicom.Dataset], masks: np.ndarray, names: Sequence[str], values: Sequence[int], by: str
) -> bytes:
    """Return the file: (F, rows, columns, structures) masks of the source images."""
    hd = _highdicom()
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"MedDAP {by}"[:64],
        version=__version__,
        family=hd.sr.CodedConcept("113076", "DCM", "Segmentation"),
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=hd.sr.CodedConcept(str(value), _SCHEME, name[:64]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, value) in enumerate(zip(names, values), 1)
    ]
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="MedDAP",
        manufacturer_model_name="meddap predict",
        software_versions=__version__,
        device_serial_number="0",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
    )
    memory = io.BytesIO()
    made.save_as(memory)
    return memory.getvalue()


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError:
        raise FileError("--dicom-seg needs highdicom: pip install 'meddap[seg]', or leave it out") from None
    return highdicom
