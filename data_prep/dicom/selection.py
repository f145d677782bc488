"""The selection of DICOM images that are acquired slices, with reasons for leaving out the others."""

from __future__ import annotations

from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from data_prep.config import StackConfig
from data_prep.dicom.scan import AnyHeader, Header
from data_prep.dicom.whitelist import number, term
from data_prep.volumes.volume import RejectedSeries

_STORED = {
    "CT": {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage},
    "MR": {MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage},
    "PT": {PositronEmissionTomographyImageStorage, EnhancedPETImageStorage},
}
_DOCUMENTS = {"SR": "report", "DOC": "document", "PR": "presentation state", "KO": "key object", "REG": "registration"}
# Defined terms (PS3.3, C.7.3.1.1.1 and C.7.6.3.1.2) that reasons may repeat
MODALITIES = {
    *_STORED,
    *_DOCUMENTS,
    *"AU BMD CR DX ECG EPS ES GM HC HD IO IVUS KER M3D MG NM OAM OCT OP OPM OPT OPV OT PLAN PT PX RESP RF RG".split(),
    *"RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SEG SM SMR SRF STAIN US VA XA XC".split(),
}
COLOURS = {"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB", "HSV"}
COLOURS |= {"CMYK"}
_MOSAIC = "mosaic: all slices of a volume in one picture; convert it to NIfTI (dcm2niix) or to enhanced MR"
_IN_MOSAIC = 0x0019100A  # Siemens: how many slices
# Words of ImageType (PS3.3, C.7.6.1.1.2, C.8.2.1.1.1, C.8.16.1) that say what an image is instead of a slice
_WORDS = {
    "LOCALIZER": "localizer",
    "SCOUT": "localizer",
    "SCREEN SAVE": "screenshot",
    "SCREENSAVE": "screenshot",
    "DOSE": "dose report",
    "DOSE_INFO": "dose report",
    "CT_SOM5 PROT": "dose report",
    "CT_SOM7 PROT": "dose report",
    "MOSAIC": _MOSAIC,
}
_DERIVED = {
    *("MPR", "MPR_THICK", "MPR_THIN", "MIP", "MAX_IP", "MINIP", "MIN_IP", "MEAN_IP", "AVERAGE", "PROJECTION IMAGE"),
    *("3D", "VOLREN", "VOLUME_RENDER", "SURFACE", "CPR", "REFORMATTED", "SUBTRACT", "SUBTRACTION", "SUB", "DIXON_FF"),
    *("PERFUSION", "RCBF", "RCBV", "MTT", "TTP", "TMAX", "CBF", "CBV", "FA", "TENSOR", "COLFA", "PHASE MAP"),
    *("MONOENERGETIC", "MATERIAL_DECOMP", "IODINE", "VIRTUAL_NON_CONTRAST", "T1 MAP", "T2 MAP", "FIELD MAP", "MPRR"),
}
# In an ORIGINAL\\PRIMARY image these say how it was acquired
_ACQUIRED = {"PERFUSION", "3D", "AVERAGE", "TENSOR"}
# maps computed on the scanner that are sequences of their own in MRI
_MAPS = {"ADC", "SWI", "TRACEW", "TRACE"}


# What `check` looks at
ATTRIBUTES: tuple[str | int, ...] = (
    *(
        "MediaStorageSOPClassUID",
        "SOPClassUID",
        "Modality",
        "ImageType",
        "Manufacturer",
        _IN_MOSAIC,
        "PixelData",
        "Rows",
    ),
    *("SamplesPerPixel", "PhotometricInterpretation", "BurnedInAnnotation"),
)


def check(dataset: AnyHeader, modality: str, config: StackConfig) -> None:
    """Raise RejectedSeries unless `dataset` is an acquired image of `modality` ("CT", "MR" or "PT")."""
    stored, stated = _stored(dataset), term(dataset.get("Modality"), MODALITIES, "unknown")
    words = image_type(dataset)
    if stated in _DOCUMENTS:
        raise RejectedSeries(f"{_DOCUMENTS[stated]}, not an image")
    for word in words:
        if word in _WORDS:
            raise RejectedSeries(_WORDS[word])
    if modality == "MR" and _is_mosaic(dataset):
        raise RejectedSeries(_MOSAIC)
    if "Secondary Capture" in getattr(stored, "name", ""):
        raise RejectedSeries("secondary capture")
    if stated != modality:
        raise RejectedSeries(f"modality {stated}, not {modality}")
    if stored not in _STORED[modality]:
        name = getattr(stored, "name", stored)
        raise RejectedSeries(f"not a {modality} image: {name if name != stored else 'unknown SOP class'}")
    if "PixelData" not in dataset and dataset.get("Rows") is None:
        raise RejectedSeries("no pixels")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise RejectedSeries("colour image")
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise RejectedSeries(
            f"pixels are {term(dataset.get('PhotometricInterpretation'), COLOURS, 'of an unknown kind')}"
        )
    if config.derived == "refuse" and is_derived(words):
        raise RejectedSeries("derived series; stacks.derived=keep takes it")
    if config.burned_in == "refuse" and str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise RejectedSeries("BurnedInAnnotation is YES; stacks.burned_in=keep takes it")


def _is_mosaic(dataset: AnyHeader) -> bool:
    """Return whether Siemens counts the slices of a picture, for headers whose ImageType no longer says MOSAIC."""
    if "SIEMENS" not in str(dataset.get("Manufacturer") or "").upper():
        return False
    if isinstance(dataset, Header):
        element = dataset.raw((_IN_MOSAIC,))[0]
        value: object = None if element is None else element[1]
    else:
        found = dataset.get(_IN_MOSAIC)
        value = None if found is None else found.value
    return (int.from_bytes(value[:2], "little") if isinstance(value, bytes) else number(value) or 0) > 1


def _stored(dataset: AnyHeader) -> object:
    """Return the SOP class; if anonymisation emptied it, the file's own header still says it (PS3.10, 7.1)."""
    return dataset.get("SOPClassUID") or getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")


def image_type(dataset: AnyHeader) -> list[str]:
    """Return the values of ImageType, upper case."""
    words = dataset.get("ImageType") or []
    return [str(word).strip().upper() for word in ([words] if isinstance(words, str) else words)]


def is_derived(words: list[str]) -> bool:
    """Return whether pixels were computed from other images.

    DERIVED alone does not say so: lossy compression makes an original DERIVED\\PRIMARY. DERIVED\\SECONDARY or
    the name of a computation does; maps that count as MRI sequences (ADC, SWI) stay.
    """
    if _MAPS & set(words):
        return False
    computed = _DERIVED - _ACQUIRED if words[:2] == ["ORIGINAL", "PRIMARY"] else _DERIVED
    return bool(computed & set(words)) or words[:2] == ["DERIVED", "SECONDARY"]
