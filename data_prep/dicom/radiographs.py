"""DICOM images that are pictures, not slices: radiographs and others, with the range that the header shows.

What the header says is done in the standard's order (PS3.3, C.11 and C.7.6.3.1): modality LUT or rescale; the first VOI
LUT or window, linear ones as a range, so that no value is cut; then 0 is white where PhotometricInterpretation is
MONOCHROME1, which PresentationLUTShape must agree with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi

from data_prep.config import ImagesConfig
from data_prep.dicom import frames, pixels, selection, whitelist
from data_prep.dicom.files import open_file
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries, check_size

# Defined terms of ViewPosition (PS3.3, C.8.7.1.1.3 and C.8.11.5) that a data set may keep
_VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAO", "RAO", "LPO", "RPO"}
_VIEWS |= {"ML", "MLO", "LM", "LMO", "CC", "FB", "SIO", "ISO", "XCC", "XCCL", "XCCM"}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_LEAST = 0.1  # share of the pixels that a header's window must show with a grey of their own


@dataclass(frozen=True)
class Radiograph:
    """One frame.

    values    (H, W) numbers, brighter or darker with larger ones (`inverted`); or (H, W, 3) red, green and blue
    outside   (H, W) bool, padding beyond what was exposed; None where there is none
    ends      values that become the ends of the grey scale; None if the header does not say
    inverted  whether the largest value is black
    spacing   (row, column) in mm; None if the header does not say
    """

    values: np.ndarray
    outside: np.ndarray | None
    ends: tuple[float, float] | None
    inverted: bool
    spacing: tuple[float, float] | None
    meta: dict[str, object] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)


def read(path: str, config: ImagesConfig) -> Iterator[Radiograph]:
    """Yield every `frame_stride`-th frame of a file. Raises RejectedSeries, UnreadableError."""
    try:
        with open_file(path) as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        pixels.declare_syntax(header)
        _check(header, config)
        spacing, notes = _spacing(header)
        inverted = _inverted(header, config, notes)
        meta = _meta(header, config)
        for number, stored in enumerate(pixels.planes(path)):
            if number % config.frame_stride == 0:
                yield _radiograph(header, stored, config, inverted, spacing, meta, dict(notes))
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(pixels.unreadable(error)) from error


def _check(header: pydicom.Dataset, config: ImagesConfig) -> None:
    """Raise RejectedSeries for what is not a picture to learn from."""
    modality = whitelist.code(header.get("Modality"))
    if modality not in config.radiographs.modalities:
        stated = whitelist.term(modality, selection.MODALITIES, "unknown")
        raise RejectedSeries(f"modality {stated}; radiographs.modalities names those that are taken")
    if header.get("Rows") is None or header.get("Columns") is None or header.get("BitsAllocated") is None:
        raise RejectedSeries("no pixels")
    if header.get("PresentationIntentType") == "FOR PROCESSING" and config.radiographs.for_processing == "refuse":
        raise RejectedSeries("raw image FOR PROCESSING; radiographs.for_processing=keep takes it")
    if config.stacks.derived == "refuse" and selection.is_derived(selection.image_type(header)):
        raise RejectedSeries("derived series; stacks.derived=keep takes it")
    if config.stacks.burned_in == "refuse" and str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise RejectedSeries("BurnedInAnnotation is YES; stacks.burned_in=keep takes it")
    frames.check_bits(header)
    check_size((int(header.Rows), int(header.Columns)), config.limits.volume_gb)


def _spacing(header: pydicom.Dataset) -> tuple[tuple[float, float] | None, dict[str, object]]:
    """Return the spacing in the patient, or at the detector, where bodies look larger, and a note on which it is."""
    for name, where in (("PixelSpacing", ""), ("ImagerPixelSpacing", "at the detector, not in the patient")):
        lengths = [whitelist.number(value) for value in header.get(name) or ()]
        if len(lengths) == 2 and all(length and length > 0 for length in lengths):
            row, column = (float(length) for length in lengths if length)
            return (row, column), {"spacing": where} if where else {}
    return None, {}


def _inverted(header: pydicom.Dataset, config: ImagesConfig, notes: dict[str, object]) -> bool:
    """Return whether the largest value is black. Raises RejectedSeries for a header that contradicts itself."""
    photometric, shape = header.get("PhotometricInterpretation"), header.get("PresentationLUTShape")
    if photometric not in _GREY:
        return False
    inverted = bool(photometric == "MONOCHROME1")
    if shape in ("INVERSE", "IDENTITY") and inverted != (shape == "INVERSE"):
        said = f"PhotometricInterpretation {photometric} against PresentationLUTShape {shape}"
        if config.radiographs.polarity == "refuse":
            raise RejectedSeries(f"{said}; radiographs.polarity=photometric or shape says which counts")
        notes["polarity"] = f"{said}: {config.radiographs.polarity} counts"
        return inverted if config.radiographs.polarity == "photometric" else not inverted
    return inverted


def _meta(header: pydicom.Dataset, config: ImagesConfig) -> dict[str, object]:
    kept = whitelist.fields(header, config.keep_year)
    if view := whitelist.term(header.get("ViewPosition"), _VIEWS, ""):
        kept["view"] = view
    laterality = header.get("ImageLaterality") or header.get("Laterality")
    if side := whitelist.term(laterality, {"L", "R", "B", "U"}, ""):
        kept["laterality"] = side
    return kept


def _radiograph(
    header: pydicom.Dataset,
    stored: np.ndarray,
    config: ImagesConfig,
    inverted: bool,
    spacing: tuple[float, float] | None,
    meta: dict[str, object],
    notes: dict[str, object],
) -> Radiograph:
    if stored.ndim == 3:
        return Radiograph(stored, None, None, False, spacing, meta, notes)
    if header.get("PhotometricInterpretation") not in _GREY:
        kind = whitelist.term(header.get("PhotometricInterpretation"), selection.COLOURS, "of an unknown kind")
        raise RejectedSeries(f"pixels are {kind}")
    stored = _within(stored, header)
    outside = None
    if padding := frames.padding_of(header):
        outside = (stored >= padding[0]) & (stored <= padding[1])
        if outside.all():
            raise RejectedSeries("all its pixels are padding")
        outside = outside if outside.any() else None
    values, ends = _presented(header, stored, config, notes)
    if ends is not None and (shown := _shown(values, ends, outside)) < _LEAST:
        raise RejectedSeries(f"its window shows {shown:.0%} of its pixels; radiographs.window=range takes `range`")
    return Radiograph(values, outside, ends, inverted, spacing, meta, notes)


def _within(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Return stored values without what legacy overlays put into the bits above BitsStored (PS3.5, 8.1.1)."""
    spare = stored.dtype.itemsize * 8 - int(header.BitsStored)
    return stored << spare >> spare if spare else stored


def _presented(
    header: pydicom.Dataset, stored: np.ndarray, config: ImagesConfig, notes: dict[str, object]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return values behind modality LUT and VOI LUT, and the ends that a window or LUT gives them."""
    values = stored
    slope, intercept = (whitelist.number(header.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    if header.get("ModalityLUTSequence") or (slope or 1, intercept or 0) != (1, 0):
        values = apply_modality_lut(stored, header)
    whole = _ends_of_bits(header, stored) if config.range == "full" and not header.get("ModalityLUTSequence") else None
    if config.radiographs.window == "range":
        return values, whole
    if header.get("VOILUTSequence"):
        lut = header.VOILUTSequence[0]
        if values.dtype.kind == "f":
            values = np.rint(values).astype(np.int32)
        notes["window"] = "VOI LUT of the header"
        return apply_voi(values, header), (0.0, float((1 << int(lut.LUTDescriptor[2])) - 1))
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return values, whole
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    notes["window"] = f"{function} window of the header" if function != "LINEAR" else "window of the header"
    if function == "SIGMOID" and width > 0:
        shown = 65535 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
        return np.rint(shown).astype(np.uint16), (0.0, 65535.0)
    if function == "LINEAR_EXACT" and width > 0:
        return values, (centre - width / 2, centre + width / 2)
    if function == "LINEAR" and width > 1:
        return values, (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    raise RejectedSeries(f"a window {width:g} wide with VOILUTFunction {whitelist.code(function) or 'unknown'}")


def _ends_of_bits(header: pydicom.Dataset, stored: np.ndarray) -> tuple[float, float]:
    """Return the ends of what the stored bits can hold, rescaled."""
    bits = int(header.BitsStored)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    slope, intercept = (whitelist.number(header.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    return low * (slope or 1) + (intercept or 0), high * (slope or 1) + (intercept or 0)


def _first(value: Any) -> float | None:
    return whitelist.number(value[0] if isinstance(value, pydicom.multival.MultiValue) and len(value) else value)


def _shown(values: np.ndarray, ends: tuple[float, float], outside: np.ndarray | None) -> float:
    """Return the share of the pixels inside the ends."""
    inside = (values >= ends[0]) & (values <= ends[1])
    return float(np.count_nonzero(inside) / inside.size if outside is None else inside[~outside].mean())
