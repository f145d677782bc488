"""The header fields that are kept. Nothing else of a header goes into a data set."""

from __future__ import annotations

import re

import pydicom

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
# Defined terms of PS3.16, annex L, that are met in CT and MRI
_BODY_PARTS = {
    *("ABDOMEN", "ABDOMENPELVIS", "ADRENAL", "ANKLE", "AORTA", "ARM", "BRAIN", "BREAST", "CHEST", "CHESTABDOMEN"),
    *("CHESTABDPELVIS", "CIRCLEOFWILLIS", "CLAVICLE", "CSPINE", "CTSPINE", "EAR", "ELBOW", "EXTREMITY", "EYE", "FACE"),
    *("FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEADNECK", "HEART", "HIP", "HUMERUS", "JAW", "KIDNEY"),
    *("KNEE", "LEG", "LIVER", "LSPINE", "LSSPINE", "LUNG", "MEDIASTINUM", "NECK", "NECKCHEST", "NECKCHESTABDOMEN"),
    *("NECKCHESTABDPELV", "ORBIT", "PANCREAS", "PELVIS", "PROSTATE", "RIB", "SCAPULA", "SHOULDER", "SINUS", "SKULL"),
    *(
        "SPINE",
        "SPLEEN",
        "SSPINE",
        "STERNUM",
        "THIGH",
        "TLSPINE",
        "TMJ",
        "TSPINE",
        "UTERUS",
        "WHOLEBODY",
        "WRIST",
        "ZYGOMA",
    ),
}


def fields(dataset: pydicom.Dataset, keep_year: bool = False) -> dict[str, object]:
    """The whitelisted fields of a header: codes, numbers, contrast, sex, age by decade, the year on request."""
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
    """A short code as text, or nothing where the value is longer or holds other characters."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else ""
    text = str(value or "").strip()
    return text if _CODE.fullmatch(text) else ""


def term(value: object, terms: set[str], otherwise: str) -> str:
    """A header's word where it is one of `terms`: what else stands there may be anything, a name too."""
    text = str(value or "").strip().upper()
    return text if text in terms else otherwise


def number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < 1e9 else None
