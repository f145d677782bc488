"""The attributes by which the frames of a series are told apart, besides their grid and their place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pydicom

from data_prep.dicom.scan import AnyHeader, Element, Header, converted, tag_of

Value = Any  # "" without one; float, text, or a tuple of them

# Frames of one volume agree in these
SAME = {
    "CT": ("ConvolutionKernel", "TemporalPositionIdentifier", "StackID", "KVP", "ContrastBolusAgentPhase"),
    "MR": (
        *("EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue", "DiffusionGradientOrientation"),
        *("TemporalPositionIdentifier", "StackID", "ComplexImageComponent", "AcquisitionContrast", "ASLContext"),
        *("ContrastBolusAgentPhase", "ImageType"),
    ),
    "PT": ("TemporalPositionIdentifier", "StackID", "ImageType", "Units", "CorrectedImage", "ReconstructionMethod"),
}
# These tell volumes apart only where places repeat: alone they say little
_AT_ONE_PLACE = (
    *("SequenceName", "PulseSequenceName", "ScanningSequence", "SequenceVariant", "ImagedNucleus", "EchoTrainLength"),
    *("PixelBandwidth", "NumberOfAverages", "PercentSampling", "XRayTubeCurrent", "Exposure", "ExposureTime"),
    *("SliceThickness", "SpacingBetweenSlices", "ContrastBolusVolume", "AcquisitionDate", "SeriesDate"),
    *("DerivationDescription", "ImageComments", "WindowCenter", "WindowWidth", "PerformedProcedureStepDescription"),
    *("RescaleSlope", "RescaleIntercept", "StudyInstanceUID", "FrameOfReferenceUID", "InstanceCreationTime"),
)
# These may also count slices: they tell volumes apart only where that explains why places repeat or overlap.
# Private ones: b-value and direction of Siemens, b-value of GE and Philips
MAYBE: tuple[str | int, ...] = (
    *("AcquisitionNumber", "DimensionIndexValues", "NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime"),
    *("TriggerTime", "TriggerDelayTime", "DiffusionBValue", "DiffusionGradientOrientation", 0x0019100C, 0x0019100E),
    *(0x00431039, 0x20011003, "ContrastBolusAgent", "ContrastBolusStartTime", "ImageType", "FlipAngle"),
    *("RepetitionTime", "AcquisitionDateTime", "AcquisitionTime", "SeriesDescription", "SeriesNumber", "SeriesTime"),
    *("ProtocolName", "ScanOptions", "FilterType", "ReconstructionDiameter", "ContentTime"),
    *_AT_ONE_PLACE,
)
PASSES = len(MAYBE) - len(_AT_ONE_PLACE)  # how many of them tell volumes apart whose places do not repeat
# In the order of time: the n-th value at each place is of the n-th volume
ORDERED = ("AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime")
_MAYBE_TAGS = tuple(name if isinstance(name, int) else tag_of(name) for name in MAYBE)
_SAME_TAGS = {modality: tuple(tag_of(name) for name in names) for modality, names in SAME.items()}


def same(header: AnyHeader, modality: str) -> tuple[Value, ...]:
    """Return the values in which the frames of a volume agree."""
    if isinstance(header, Header):
        return _same_of(modality, header.raw(_SAME_TAGS[modality]))
    return tuple(_kept(name, _normal(header.get(name))) for name in SAME[modality])


def maybe(header: AnyHeader) -> tuple[object, ...]:
    """Return what `value` takes, one for each of MAYBE; nothing is converted yet."""
    if isinstance(header, Header):
        return header.raw(_MAYBE_TAGS)
    return tuple(_normal(_get(header, name)) for name in MAYBE)


def value(place: int, kept: object) -> Value:
    """Return the value of MAYBE[place] from what `maybe` returned."""
    if isinstance(kept, tuple) and len(kept) == 2 and isinstance(kept[0], bytes):
        return _value(_MAYBE_TAGS[place], kept)
    return "" if kept is None else kept


def name_of(place: int) -> str:
    """Return how a reason calls MAYBE[place]."""
    name = MAYBE[place]
    return name if isinstance(name, str) else f"private ({name >> 16:04X},{name & 0xFFFF:04X})"


def alike(one: Sequence[Value], other: Sequence[Value]) -> bool:
    """Return whether values agree; numbers within a thousandth."""
    return len(one) == len(other) and all(_agree(mine, yours) for mine, yours in zip(one, other))


def _agree(mine: Value, yours: Value) -> bool:
    if mine == yours:
        return True
    if isinstance(mine, float) and isinstance(yours, float):
        return abs(mine - yours) <= 1e-3 * max(abs(mine), abs(yours), 1e-3)
    if isinstance(mine, tuple) and isinstance(yours, tuple) and all(isinstance(v, float) for v in (*mine, *yours)):
        return len(mine) == len(yours) and all(abs(a - b) <= 1e-3 for a, b in zip(mine, yours))
    return False


@lru_cache(maxsize=4096)
def _same_of(modality: str, elements: tuple[Element | None, ...]) -> tuple[Value, ...]:
    tags, names = _SAME_TAGS[modality], SAME[modality]
    return tuple(_kept(name, _value(tag, element)) for name, tag, element in zip(names, tags, elements))


def _kept(name: str, found: Value) -> Value:
    if name != "ImageType":
        return found
    # the first two change when an image is compressed
    return tuple(str(word).upper() for word in found[2:]) if isinstance(found, tuple) else ()


def _value(tag: int, element: Element | None) -> Value:
    if element is None:
        return ""
    try:
        return _normal(converted(tag, *element))
    except Exception:  # a malformed value is still one that others may share
        return element[1].decode("latin-1").strip("\0 ")


def _get(dataset: pydicom.Dataset, name: str | int) -> Any:
    if isinstance(name, str):
        return dataset.get(name)
    element = dataset.get(name)
    return None if element is None else element.value


def _normal(found: Any) -> Value:
    if found is None or isinstance(found, pydicom.Sequence):
        return ""
    if isinstance(found, (int, float)):
        return float(found)
    if isinstance(found, bytes):
        found = found.decode("latin-1")
    if isinstance(found, str):
        return found.strip("\0 ")
    if isinstance(found, (pydicom.multival.MultiValue, list, tuple)):
        return tuple(_normal(each) for each in found)
    try:
        return float(found)
    except (TypeError, ValueError):
        return str(found)
