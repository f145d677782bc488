"""DICOM images as frames: classic files hold one, enhanced multi-frame files many; both look alike from here on."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data_prep.config import StackConfig
from data_prep.dicom import selection, traits
from data_prep.dicom.files import open_file, syntax_of
from data_prep.dicom.scan import AnyHeader, Header, once, part, scan, tags_of
from data_prep.dicom.whitelist import number, term
from data_prep.volumes.volume import RejectedSeries

_HU = {"HU", "US", "HU_MOD"}  # US means unspecified: old scanners write it for HU
_UNITS = _HU | {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}  # PS3.3, C.11.1.1.2
_UNDEFINED = 0xFFFFFFFF  # length of encapsulated pixel data
# Functional groups of an enhanced image (PS3.3, C.7.6.16): sequence → its attribute → the classic name
_GROUPS = {
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "FrameContentSequence": {
        "TemporalPositionIndex": "TemporalPositionIdentifier",
        "StackID": "StackID",
        "DimensionIndexValues": "DimensionIndexValues",
        "FrameAcquisitionNumber": "AcquisitionNumber",
        "FrameAcquisitionDateTime": "AcquisitionDateTime",
    },
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "MRImageFrameTypeSequence": {
        "FrameType": "ImageType",
        "ComplexImageComponent": "ComplexImageComponent",
        "AcquisitionContrast": "AcquisitionContrast",
    },
    "PETFrameTypeSequence": {"FrameType": "ImageType"},
    "MREchoSequence": {"EffectiveEchoTime": "EchoTime"},
    "MRDiffusionSequence": {"DiffusionBValue": "DiffusionBValue"},
    "MRTimingAndRelatedParametersSequence": {"RepetitionTime": "RepetitionTime", "FlipAngle": "FlipAngle"},
    "MRModifierSequence": {"InversionTimes": "InversionTime"},
    "MRArterialSpinLabelingSequence": {"ASLContext": "ASLContext"},
    "CardiacSynchronizationSequence": {
        "NominalCardiacTriggerDelayTime": "NominalCardiacTriggerDelayTime",
        "NominalPercentageOfCardiacPhase": "NominalPercentageOfCardiacPhase",
    },
    "TemporalPositionSequence": {"TemporalPositionTimeOffset": "TriggerTime"},
    "ContrastBolusUsageSequence": {"ContrastBolusAgentPhase": "ContrastBolusAgentPhase"},
    "FrameAnatomySequence": {},
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "CTXRayDetailsSequence": {"KVP": "KVP"},
}
_REAL_WORLD = "RealWorldValueMappingSequence"
_ACTIVITY = {"bq/ml": "BQML", "g/ml{suvbw}": "GML"}  # UCUM, in lower case → Units of classic PET
# In these most files of a series agree: what follows from them is worked out once
_SHARED = tags_of(
    *selection.ATTRIBUTES,
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "TransferSyntaxUID"),
    *("ImageOrientationPatient", "PixelSpacing", "Columns", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)


@dataclass(frozen=True)
class Frame:
    """One image plane and how to read it.

    position, axes  ImagePositionPatient (3,) and ImageOrientationPatient (6,), LPS, mm
    spacing         (row, column) in mm
    shape           (rows, columns)
    slope, intercept  stored value → HU or signal; (1, 0) where the header has none
    padding         range of stored values, low … high, that stand for padding; None without padding
    bright          the largest stored value if it is to be inverted (MONOCHROME1), else None
    group           values that the frames of a volume share besides the grid: echo time, kernel … (traits.SAME)
    maybe           values that may tell volumes apart where places repeat (traits.MAYBE, not yet converted)
    raw             (offset, type) of native little-endian pixels in the file, or None
    bits            BitsStored: native pixels may hold other bits above
    """

    path: str
    number: int
    position: np.ndarray
    axes: tuple[float, ...]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    bright: int | None
    group: tuple
    maybe: tuple
    instance: int
    acquisition: str
    uid: str
    raw: tuple[int, str] | None
    bits: int


def read(path: str, modality: str, config: StackConfig) -> Iterator[tuple[Frame, AnyHeader]]:
    """Yield the frames of one file, each with a header in the names of classic files.

    Raises RejectedSeries unless the file holds acquired images of `modality`, behind them if it holds computed ones
    too, and whatever pydicom raises for damage.
    """
    with open_file(path) as file:
        dataset: AnyHeader = scan(file) or pydicom.dcmread(file, stop_before_pixels=True, force=True)
        shared = part(_SHARED, dataset.raw(_SHARED)) if isinstance(dataset, Header) else dataset
        once(shared, selection.check, modality, config)
        once(shared, check_bits)
        raw = _native(file, shared)
        if isinstance(file, io.BytesIO):
            raw = None  # unpacked: no offset in the file itself
    if isinstance(dataset, Header):
        once(shared, _check_single)
        yield _frame(path, 0, dataset, shared, modality, raw), dataset
        return
    derived = 0  # an enhanced image may hold acquired frames beside computed ones
    for place, flat in enumerate(flattened(dataset)):
        if config.derived == "refuse" and selection.is_derived(selection.image_type(flat)):
            derived += 1
        else:
            yield _frame(path, place, flat, flat, modality, raw), flat
    if derived:
        raise RejectedSeries("derived series; stacks.derived=keep takes it")


def _check_single(dataset: AnyHeader) -> int:
    """Return how many frames a file without functional groups has, 1. Raises RejectedSeries for more."""
    if (count := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise RejectedSeries("multi-frame image without a position per frame")
    return count


def flattened(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Yield a classic header per frame. Raises RejectedSeries where groups and frames differ in number."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        _check_single(dataset)
        yield dataset
        return
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(per_frame) != count:
        raise RejectedSeries(f"{count} frames, but positions of {len(per_frame)}")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    for groups in per_frame:
        flat = pydicom.Dataset()
        flat.update(dataset)  # copy.copy would share one dictionary between all frames
        del flat["PerFrameFunctionalGroupsSequence"]
        for name, attributes in _GROUPS.items():
            macro = groups.get(name) or shared[0].get(name)
            for inner, classic in attributes.items():
                value = macro[0].get(inner) if macro else None
                if value is not None:
                    _put(flat, classic, value)
            directions = macro[0].get("DiffusionGradientDirectionSequence") if macro else None
            if directions:
                _put(flat, "DiffusionGradientOrientation", directions[0].get("DiffusionGradientOrientation"))
        if dataset.get("Modality") == "PT":
            _map_activity(flat, groups.get(_REAL_WORLD) or shared[0].get(_REAL_WORLD) or [])
        yield flat


def _map_activity(flat: pydicom.Dataset, mappings: Sequence[pydicom.Dataset]) -> None:
    """Give a frame of enhanced PET slope, intercept and Units of classic PET, where its real-world values say them.

    PS3.3, C.7.6.16.2.11: stored value · RealWorldValueSlope + RealWorldValueIntercept, in units of UCUM.
    Activity counts before uptake by body weight.
    """
    for code, units in _ACTIVITY.items():
        for mapping in mappings:
            stated = mapping.get("MeasurementUnitsCodeSequence") or [pydicom.Dataset()]
            slope, intercept = (
                number(mapping.get("RealWorldValueSlope")),
                number(mapping.get("RealWorldValueIntercept")),
            )
            if str(stated[0].get("CodeValue") or "").lower() == code and slope is not None and intercept is not None:
                for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept), ("Units", units)):
                    _put(flat, name, value)
                return


def _put(flat: pydicom.Dataset, name: str, value: object) -> None:
    if name in flat:
        del flat[name]  # setting it would change the element, which the headers of all frames share
    setattr(flat, name, value)


@dataclass(frozen=True)
class _Grid:
    """The fields of `Frame` that frames of a series share. `known`: as many numbers as needed, all finite."""

    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    bright: int | None
    bits: int
    known: bool


def _grid(dataset: AnyHeader, modality: str) -> _Grid:
    for name in ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
        if dataset.get(name) is None:
            raise RejectedSeries(f"no {name}")
    slope, intercept = number(dataset.get("RescaleSlope")), number(dataset.get("RescaleIntercept"))
    if modality == "CT":
        if slope is None or intercept is None or slope == 0:
            raise RejectedSeries("no RescaleSlope and RescaleIntercept: stored values cannot be converted to HU")
        if (unit := term(dataset.get("RescaleType") or "HU", _UNITS, "in an unknown unit")) not in _HU:
            raise RejectedSeries(f"stored values are {unit}, not HU")
    axes = tuple(float(value) for value in dataset.ImageOrientationPatient)
    spacing = tuple(float(value) for value in dataset.PixelSpacing)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" and modality != "CT"
    top = 2 ** int(dataset.BitsStored) - 1 if not dataset.PixelRepresentation else -1  # of signed ones −1 − v inverts
    return _Grid(
        axes=axes,
        spacing=spacing,
        shape=(int(dataset.Rows), int(dataset.Columns)),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        padding=padding_of(dataset),
        bright=top if inverted else None,
        bits=int(dataset.BitsStored),
        known=len(axes) == 6 and len(spacing) == 2 and all(map(math.isfinite, (*axes, *spacing))),
    )


def _frame(
    path: str, place: int, dataset: AnyHeader, shared: AnyHeader, modality: str, raw: tuple[int, str] | None
) -> Frame:
    position = dataset.decimals("ImagePositionPatient") if isinstance(dataset, Header) else None
    if position is None and dataset.get("ImagePositionPatient") is None:
        raise RejectedSeries("no ImagePositionPatient")
    grid = once(shared, _grid, modality)
    if position is None:
        position = [float(value) for value in dataset.ImagePositionPatient]
    if not grid.known or len(position) != 3 or not all(map(math.isfinite, position)):
        raise RejectedSeries("position, orientation or spacing is incomplete")
    down, across = grid.spacing
    if min(down, across) <= 0:
        raise RejectedSeries(f"pixel spacing of {min(down, across)} mm")
    if raw is not None:
        raw = (raw[0] + place * grid.shape[0] * grid.shape[1] * 2, raw[1])
    return Frame(
        path=path,
        number=place,
        position=np.array(position),
        axes=grid.axes,
        spacing=(down, across),
        shape=grid.shape,
        slope=grid.slope,
        intercept=grid.intercept,
        padding=grid.padding,
        bright=grid.bright,
        group=traits.same(dataset, modality),
        maybe=traits.maybe(dataset),
        instance=int(dataset.get("InstanceNumber") or 0),
        acquisition=str(dataset.get("AcquisitionNumber") or ""),
        uid=str(dataset.get("SOPInstanceUID") or ""),
        raw=raw,
        bits=grid.bits,
    )


def padding_of(dataset: AnyHeader) -> tuple[int, int] | None:
    """Return the range of padding (PS3.3, C.7.5.1.1.2), which some files state unsigned though pixels are signed."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    ends = []
    for end in (value, dataset.get("PixelPaddingRangeLimit", value)):
        end = int.from_bytes(end[:2], "little") if isinstance(end, bytes) else int(end)
        ends.append(end - 65536 if dataset.PixelRepresentation and end > 32767 else end)
    return min(ends), max(ends)


def check_bits(dataset: AnyHeader) -> None:
    """Raise RejectedSeries unless a value fills the low bits of whole bytes (PS3.5, 8.1.1)."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = dataset.get("HighBit")
    if allocated not in (8, 16, 32):
        raise RejectedSeries(f"{allocated} bits a pixel (BitsAllocated); 8, 16 and 32 are read")
    if not 0 < stored <= allocated:
        raise RejectedSeries(f"BitsStored is {stored}, BitsAllocated {allocated}")
    if high is not None and int(high) != stored - 1:
        raise RejectedSeries(
            f"{stored} bits end at bit {high} (HighBit), not {stored - 1}: which bits count is unclear"
        )


def _native(file: BinaryIO, dataset: AnyHeader) -> tuple[int, str] | None:
    """Return offset and type of 16-bit little-endian pixels, which can be read without a second parse.

    The file stands at the tag of PixelData. None if pixels are compressed or of another width: then pydicom reads them.
    Raises RejectedSeries if there are fewer than the header says.
    """
    if not once(dataset, _is_native):
        return None
    head = file.read(12)
    if len(head) < 12 or struct.unpack("<HH", head[:4]) != (0x7FE0, 0x0010):
        return None
    # by content: some files are written otherwise than they declare; a length whose first byte is "O" would be odd
    implicit = head[4:6] not in (b"OW", b"OB")
    length = struct.unpack("<I", head[4:8] if implicit else head[8:12])[0]
    offset = file.tell() - (4 if implicit else 0)
    needed, kind = once(dataset, _needed)
    if length == _UNDEFINED:
        return None
    if length < needed or file.seek(0, 2) < offset + needed:
        raise RejectedSeries("damaged: the file ends within its pixels, or holds fewer than its header says")
    return None if kind is None else (offset, kind)


def _is_native(dataset: AnyHeader) -> bool:
    syntax = syntax_of(dataset)
    if syntax is None and dataset.original_encoding[1]:  # before PS3.10: no file header, little endian
        syntax = ExplicitVRLittleEndian
    return syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def _needed(dataset: AnyHeader) -> tuple[int, str | None]:
    """Return the bytes of all frames, and the type of their pixels; None unless they are of 16 bits."""
    width = dataset.BitsAllocated // 8
    needed = dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1) * width
    return needed, ("<i2" if dataset.PixelRepresentation else "<u2") if width == 2 else None
