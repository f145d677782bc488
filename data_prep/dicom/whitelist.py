"""The whitelist of header fields. Nothing else of a header goes into a data set."""

from __future__ import annotations

import re
from typing import Any

import pydicom

from data_prep.dicom.scan import AnyHeader

_CODE = re.compile(r"[A-Za-z0-9 ._/+-]{1,32}")
# Short codes that say how an image was made; none is in the list of PS3.15, table E.1-1
_CODES = {
    "Modality": "modality",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "ConvolutionKernel": "kernel",
}
_NUMBERS = {
    "KVP": "kvp",
    "SliceThickness": "slice_thickness_mm",
    "MagneticFieldStrength": "field_tesla",
    "RepetitionTime": "tr_ms",
    "EchoTime": "te_ms",
    "InversionTime": "ti_ms",
}
_SEXES = {"M", "F", "O"}
# Defined terms of PS3.16, annex L, that occur in CT and MRI
_BODY_PARTS = {
    *("ABDOMEN", "ABDOMENPELVIS", "ADRENAL", "ANKLE", "AORTA", "ARM", "BRAIN", "BREAST", "CHEST", "CHESTABDOMEN"),
    *("CHESTABDPELVIS", "CIRCLEOFWILLIS", "CLAVICLE", "CSPINE", "CTSPINE", "EAR", "ELBOW", "EXTREMITY", "EYE", "FACE"),
    *("FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEADNECK", "HEART", "HIP", "HUMERUS", "JAW", "KIDNEY"),
    *("KNEE", "LEG", "LIVER", "LSPINE", "LSSPINE", "LUNG", "MEDIASTINUM", "NECK", "NECKCHEST", "NECKCHESTABDOMEN"),
    *("NECKCHESTABDPELV", "ORBIT", "PANCREAS", "PELVIS", "PROSTATE", "RIB", "SCAPULA", "SHOULDER", "SINUS", "SKULL"),
    *("SPINE", "SPLEEN", "SSPINE", "STERNUM", "THIGH", "TLSPINE", "TMJ", "TSPINE", "UTERUS"),
    *("WHOLEBODY", "WRIST", "ZYGOMA"),
}


def fields(dataset: AnyHeader, keep_year: bool = False) -> dict[str, object]:
    """Return the whitelisted fields of a header: codes, numbers, contrast, sex, age by decade, year on request."""
    kept: dict[str, object] = {name: text for tag, name in _CODES.items() if (text := code(dataset.get(tag)))}
    for tag, name in _NUMBERS.items():
        value = number(dataset.get(tag))
        if value is not None:
            kept[name] = value
    kept["contrast"] = bool(dataset.get("ContrastBolusAgent"))
    if (part := code(dataset.get("BodyPartExamined")).replace(" ", "").upper()) in _BODY_PARTS:
        kept["body_part"] = part
    if (sex := str(dataset.get("PatientSex") or "").strip()) in _SEXES:
        kept["sex"] = sex
    if age := re.fullmatch(r"0*(\d{1,3})Y", str(dataset.get("PatientAge") or "")):
        kept["age_decade"] = min(int(age[1]) // 10 * 10, 90)
    if keep_year and (date := re.match(r"(19|20)\d\d", str(dataset.get("AcquisitionDate") or ""))):
        kept["year"] = int(date[0])
    return kept


def code(value: object) -> str:
    """Return a short code as text; "" if the value is longer or holds other characters."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else ""
    text = str(value or "").strip()
    return text if _CODE.fullmatch(text) else ""


def term(value: object, terms: set[str], otherwise: str) -> str:
    """Return a header's value if it is one of `terms`, else `otherwise`: other values may be anything, even a name."""
    text = str(value or "").strip().upper()
    return text if text in terms else otherwise


def number(value: Any, below: float = 1e9) -> float | None:
    """Return a number of a smaller size than `below`, or None for what is none or cannot be a length or a value."""
    try:
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if abs(converted) < below else None
