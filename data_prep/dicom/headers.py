"""The header fields that discovery needs: a DICOM file's patient, study and series."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import SegmentationStorage

from data_prep.dicom import files
from data_prep.dicom import scan as scanned
from data_prep.dicom.scan import AnyHeader, once, part, scan, tags_of
from data_prep.volumes import zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries

# discovery needs no attribute behind SeriesInstanceUID
_LAST = Tag("SeriesInstanceUID")
_IDENTIFIERS = ("SeriesInstanceUID", "PatientID", "StudyInstanceUID")
# In these most files of a series agree: what follows from them is worked out once
_SHARED = tags_of(
    *("DirectoryRecordSequence", "SOPClassUID", "Modality", "PatientBirthDate", "PatientSex"),
    *_IDENTIFIERS,
)
_PREAMBLE = 128
# that of label maps (Supplement 243) is unknown to older pydicom
_SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
_MOST_TEXT = 64  # characters of an identifier (PS3.5, 6.2: LO and UI)


@dataclass(frozen=True)
class Header:
    """One DICOM file.

    series  SeriesInstanceUID; "" if it was emptied
    kind    "image", "segmentation" or "directory" (a DICOMDIR, which holds no image)
    refers  for a segmentation: SeriesInstanceUID of the images that it labels
    modality  "CT", "PT" …
    person  birth date and sex, by which people who share a PatientID are told apart; "" where not stated
    """

    series: str
    patient: str
    study: str
    kind: str = "image"
    refers: str = ""
    person: tuple[str, str] = ("", "")
    modality: str = ""


def is_dicom(path: str | Path) -> bool:
    """Return whether a file is DICOM: by its prefix (PS3.10, 7.1), or by a first element of group 0002 or 0008."""
    start = files.start(path, _PREAMBLE + 4)
    if start[_PREAMBLE:] == b"DICM":
        return True
    # PS3.10 requires the prefix; older archives omit it. The file header's length, version or SOP class
    if start[:2] == b"\x02\x00" and start[2:4] in (b"\x00\x00", b"\x01\x00", b"\x02\x00"):
        return start[4:6] in (b"UL", b"OB", b"UI")
    # or group length, character set, image type or SOP class
    return start[:2] == b"\x08\x00" and start[2:4] in (b"\x00\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")


def read_header(path: str | Path) -> Header:
    """Return the header of a DICOM file. Raises RejectedSeries if it is damaged, OSError if it cannot be opened."""
    with files.open_file(path, to_its_end=False) as file:
        return _read(file)


def read_if_dicom(path: str | Path) -> Header | None:
    """Return the header of a file, None if it is not DICOM, opening it once if it is a usual one. Raises as above."""
    if zips.split(path) is None:
        with open(path, "rb") as file:
            if file.peek(_PREAMBLE + 4)[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
                return _read(file)
    return read_header(path) if is_dicom(path) else None


def _read(file: BinaryIO) -> Header:
    try:
        dataset: AnyHeader = scan(file, _LAST) or _read_start(file)
        shared = part(_SHARED, dataset.raw(_SHARED)) if isinstance(dataset, scanned.Header) else dataset
        header = once(shared, _header)
        return replace(header, refers=_refers(file)) if header.kind == "segmentation" else header
    except zipfile.BadZipFile as error:
        raise zips.damage(error) from error
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(f"damaged or unreadable DICOM ({type(error).__name__})") from error


def _header(dataset: AnyHeader) -> Header:
    """Return a file's header, without what a segmentation refers to."""
    if "DirectoryRecordSequence" in dataset:
        return Header("", "", "", kind="directory")
    series, patient, study = (_text(dataset, name) for name in _IDENTIFIERS)
    if dataset.get("SOPClassUID") in _SEGMENTATIONS:
        return Header(series, patient, study, "segmentation")
    return Header(series, patient, study, person=_person(dataset), modality=_modality(dataset))


def _read_start(file: BinaryIO) -> pydicom.Dataset:
    def beyond(tag: BaseTag, _: str | None, __: int) -> bool:
        return tag > _LAST and tag >> 16 != 0x0004  # group 0004 is a DICOMDIR's

    return read_partial(file, stop_when=beyond, force=True)


def _refers(file: BinaryIO) -> str:
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    referenced = dataset.get("ReferencedSeriesSequence") or []
    return _text(referenced[0], "SeriesInstanceUID") if len(referenced) else ""


def _modality(dataset: AnyHeader) -> str:
    try:
        return str(dataset.get("Modality") or "").strip()[:16]
    except Exception:  # hostile bytes raise anything; its reader says more
        return ""


def _person(dataset: AnyHeader) -> tuple[str, str]:
    try:
        born, sex = (str(dataset.get(name) or "").strip() for name in ("PatientBirthDate", "PatientSex"))
    except Exception:  # hostile bytes raise anything; nothing else depends on these two
        return "", ""
    return born if len(born) == 8 and born.isdecimal() else "", sex if sex in ("M", "F") else ""


def _text(dataset: AnyHeader, name: str) -> str:
    value = str(dataset.get(name) or "").strip()
    if len(value) > _MOST_TEXT:
        raise ValueError(f"{name} has {len(value)} characters")
    return value
