"""MR images that are not weighted images of the anatomy: localizers, maps, phase images, perfusion and others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pydicom

from data_prep.dicom.files import open_file
from data_prep.dicom.scan import AnyHeader, scan
from data_prep.dicom.whitelist import number
from data_prep.volumes.errors import unless_trouble

LOCALIZER = "localizer"
_MAP, _PERFUSION, _ANGIOGRAPHY = "map, not a weighted image", "perfusion", "angiography"
_PHASE, _FUNCTIONAL, _CALIBRATION = "phase image", "functional series", "calibration scan"
_PROJECTION, _SUBTRACTION, _SPECTROSCOPY = "projection", "subtraction", "spectroscopy"
_INVERSION, _FIELD, _EPI = "single inversion of MP2RAGE", "field map", "reference of an echo-planar series"
_PARTS = "one of several images that are computed with"
# Suffixes of BIDS that are not weighted images (BIDS 1.10, appendix "Quantitative MRI" and "Glossary")
_SUFFIXES = {
    **dict.fromkeys(
        "T1map T2map T2starmap R1map R2map R2starmap PDmap MTRmap MTsat MTVmap MWFmap T1rho Chimap S0map M0map RB1map "
        "TB1map FA MD RD AD fa md cbv cbf ADCmap T1rhomap".split(),
        _MAP,
    ),
    **dict.fromkeys("phase phase1 phase2".split(), _PHASE),
    **dict.fromkeys("phasediff fieldmap magnitude magnitude1 magnitude2 epi".split(), _FIELD),
    **dict.fromkeys("bold boldref".split(), _FUNCTIONAL),
    **dict.fromkeys("sbref".split(), _EPI),
    **dict.fromkeys("asl m0scan asllabeling perf dsc".split(), _PERFUSION),
    **dict.fromkeys("angio".split(), _ANGIOGRAPHY),
    **dict.fromkeys("MP2RAGE".split(), _INVERSION),
    **dict.fromkeys(
        "MESE MEGRE MPM MTS MTR VFA IRT1 TB1DAM TB1EPI TB1AFI TB1TFL TB1RFM TB1SRGE RB1COR".split(), _PARTS
    ),
    **dict.fromkeys("svs mrsi mrsref unloc".split(), _SPECTROSCOPY),
    **dict.fromkeys("minIP mip MIP minip".split(), _PROJECTION),
    "PDT2": "two contrasts in one file",
    "PDw2": "two contrasts in one file",
    "defacemask": "mask",
}
_SINGLE = {
    **dict.fromkeys(("loc", "locs", "pilot", "survey", "aahead", "aaspine", "aaknee", "triplane", "3plane"), LOCALIZER),
    **dict.fromkeys(("calibration", "prescan", "refscan", "sensemap", "shim", "shimming", "setter"), _CALIBRATION),
    **dict.fromkeys(
        "t1map t2map t2starmap r1map r2map r2star r2starmap pdmap t1mapping t2mapping t1rho molli shmolli qsm chimap "
        "mtr mtsat colfa tensor eadc ktrans relaxometry mwf fieldmap b0map b1map fa md rd mtt ttp tmax rcbf "
        "rcbv cbf cbv relcbf relcbv relmtt relttp jacobian warp warpfield biasfield prob probs probseg probability "
        "pve pveseg distance displacement".split(),
        _MAP,
    ),
    **dict.fromkeys(
        ("perfusion", "perf", "dsc", "dce", "dynaviews", "pwi", "pcasl", "pasl", "casl", "vsasl"), _PERFUSION
    ),
    **dict.fromkeys(("bold", "fmri", "rsfmri", "restingstate"), _FUNCTIONAL),
    **dict.fromkeys(
        ("tof", "mra", "mrv", "cemra", "angio", "angiography", "angiogram", "tricks", "venography"), _ANGIOGRAPHY
    ),
    **dict.fromkeys(("svs", "csi", "mrs", "spectroscopy"), _SPECTROSCOPY),
    **dict.fromkeys(("mip", "mips", "minip", "mnip", "maxip"), _PROJECTION),
    **dict.fromkeys(("subtraction", "subtracted", "subtract", "subtr", "subtraktion"), _SUBTRACTION),
    **dict.fromkeys(("pha", "phaseimage", "phaseimages", "phasemap", "phasediff"), _PHASE),
    **dict.fromkeys(("sbref",), _EPI),
    **dict.fromkeys(("mosaic",), "mosaic"),
}
# parts of words, also where they stand in a longer one: HeadScout, AAHead_Scout, Lokalizer, 3Plane-Localiser
_STRONG = (
    (re.compile(r"locali[sz]|lokali[sz]|scout|surview|topogra|scanogra|reperage|smartbrain"), LOCALIZER),
    (re.compile(r"^(?:3d|2d|p|pc|ps|v)*asl(?:3d|2d)?$"), _PERFUSION),
)
_PHRASES = (
    (re.compile(r" (?:3|three|tri) pl "), LOCALIZER),
    (re.compile(r" (?:3|three|tri) ?plane? (?:loc|gre|ssfse|haste|fiesta|trufi|truefisp|scan)? ?"), LOCALIZER),
    (re.compile(r" (?:t1|t2|t2star|r1|r2|b0|b1|pd|parametric|fa|color) (?:maps?|mapping) "), _MAP),
    (re.compile(r" field ?map(?:s|ping)? "), _FIELD),
    (re.compile(r" mp2rage .*inv ?[12]? "), _INVERSION),
    (re.compile(r" mp2rage .*t1 images "), _MAP),
    (re.compile(r" phase contrast "), _ANGIOGRAPHY),
    (re.compile(r" phase (?:images?|maps?|diff|difference|unwrapped|raw) "), _PHASE),
    (re.compile(r"(?<! in)(?<! out)(?<! of)(?<!opposed)(?<! opp)(?<!arterial)(?<!venous)(?<!portal)(?<! late)"
                r"(?<!delayed)(?<! early)(?<!hepatobiliary)(?<!equilibrium)(?<!nephrographic)(?<!excretory)"
                r"(?<! single)(?<! multi)(?<! pv)(?<! art) phase $"), _PHASE),
    (re.compile(r" ref(?:erence)? scan | coil sens"), _CALIBRATION),
    (re.compile(r"^ fat .*(?:lava|dixon|flex|vibe)|dixon(?: [a-z0-9]+)* f $"), "fat image of Dixon"),
    (re.compile(r" exp(?:onential)? (?:adc|atten)| (?:dti|dwi|diff) (?:.* )?exp $"), _MAP),
    (re.compile(r" gre b0 | b0 gre "), _FIELD),
    (re.compile(r" resting state "), _FUNCTIONAL),
    (re.compile(r"^ sub (?:[a-z]+ )*(?:t1|post|pre) | (?:t1|post|gd|gad|dyn)(?: [a-z]+)* sub $"), _SUBTRACTION),
)  # fmt: skip
_SUSCEPTIBILITY = {"ven", "venous", "veno"}  # VEN_BOLD is a susceptibility-weighted image
_AT_THE_END = {"fa", "md", "rd"}  # elsewhere they may be a flip angle or a name
# Words of ImageType behind the first two (PS3.3, C.8.3.1.1.1 and C.8.13.3.1.1)
_IMAGE_TYPES = {
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP", "I", "IMAGINARY"), _PHASE),
    **dict.fromkeys(
        ("ASL", "PERFUSION", "PERFUSION_ASL", "RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX"), _PERFUSION
    ),
    **dict.fromkeys(("T1 MAP", "T2 MAP", "T2_STAR MAP", "T2STAR MAP", "R2 MAP", "FIELD MAP", "FA", "TENSOR"), _MAP),
    **dict.fromkeys(("MIP", "MNIP", "MINIP", "MIN_IP", "MAX_IP"), _PROJECTION),
    **dict.fromkeys(("SUB", "SUBTRACT", "SUBTRACTION"), _SUBTRACTION),
    **dict.fromkeys(("LOCALIZER", "SCOUT"), LOCALIZER),
    **dict.fromkeys(("FMRI", "BOLD"), _FUNCTIONAL),
    **dict.fromkeys(("TOF", "ANGIO"), _ANGIOGRAPHY),
    "MOSAIC": "mosaic",
}
_MOST_IMAGES, _MOST_IN_PLANE = 60, 15  # of a localizer, and of each of its planes
_GAP = 2.0  # slices farther apart than this many thicknesses show where things are, not what they are
_MOST_SLICES = 20  # of a localizer in one plane


def of_words(said: list[str], named: Iterable[int] = ()) -> str | None:
    """Return what words call an image that is not a weighted image; None if they do not.

    `named` holds the places of words that name a sequence. A word before the last of them may be a part of a patient's
    or a study's name ("pilot_07_t1") and does not count, unless it can mean nothing else.
    """
    for pattern, kind in _STRONG:
        if any(pattern.search(word) for word in said):
            return kind
    last = max(named, default=-1)
    for place, word in enumerate(said):
        before = said[place - 1] if place else ""
        if place < last or (word == "bold" and before in _SUSCEPTIBILITY):
            continue
        if word in _SINGLE and (word not in _AT_THE_END or place == len(said) - 1):
            return _SINGLE[word]
    text = f" {' '.join(said)} "
    return next((kind for pattern, kind in _PHRASES if pattern.search(text)), None)


def of_bids(suffix: str, entities: dict[str, str]) -> str | None:
    """Return what a BIDS suffix and its entities call an image that is not a weighted image; None if they do not."""
    if kind := _SUFFIXES.get(suffix):
        return kind
    if entities.get("part") in {"phase", "imag"}:
        return _PHASE
    if entities.get("part") == "real":
        return "real part"
    if "inv" in entities:
        return _INVERSION
    return None


def of_header(header: AnyHeader) -> str | None:
    """Return what the coded fields of a header call an image that is not a weighted image; None if they do not."""
    kinds = header.get("ImageType") or []
    for word in [kinds] if isinstance(kinds, str) else list(kinds)[2:]:
        if kind := _IMAGE_TYPES.get(str(word).strip().upper()):
            return kind
    if str(header.get("ComplexImageComponent") or "").strip().upper() in {"PHASE", "IMAGINARY"}:
        return _PHASE
    if str(header.get("AngioFlag") or "").strip().upper() == "Y" or "tof" in str(header.get("SequenceName")).lower():
        return _ANGIOGRAPHY
    if str(header.get("AcquisitionContrast") or "").strip().upper() in {"PERFUSION", "TAGGING", "FLOW_ENCODED"}:
        return (
            _PERFUSION if str(header.get("AcquisitionContrast")).strip().upper() == "PERFUSION" else "flow or tagging"
        )
    return None


def sparse(header: AnyHeader, slices: int, step_mm: float) -> str | None:
    """Return why a stack looks like a localizer in one plane: few slices, far apart; None if it does not."""
    thickness = number(header.get("SliceThickness")) or 0.0
    if 0 < thickness * _GAP < step_mm and slices <= _MOST_SLICES:
        return f"{LOCALIZER} by its geometry: {slices} slices of {thickness:g} mm, {step_mm:g} mm apart"
    return None


def in_planes(paths: Sequence[str]) -> str | None:
    """Return why the files of a series look like a localizer in two or three planes; None if they do not.

    Only of a short series are headers read. A file that cannot be read counts for nothing: its reader says why.
    """
    if len(paths) > _MOST_IMAGES:
        return None
    normals: list[np.ndarray] = []
    for path in paths:
        try:
            normals += _normals(path)
        except Exception as error:  # hostile bytes raise anything
            unless_trouble(error)
    planes: list[np.ndarray] = []
    members: Counter[int] = Counter()
    for normal in normals:
        plane = next((n for n, other in enumerate(planes) if abs(normal @ other) > 0.9), len(planes))
        if plane == len(planes):
            planes.append(normal)
        members[plane] += 1
    if len(planes) < 2 or max(members.values()) > _MOST_IN_PLANE:
        return None
    return f"{LOCALIZER} by its geometry: {len(normals)} slices in {len(planes)} planes"


def _normals(path: str) -> list[np.ndarray]:
    """Return the unit normals of the images of one file."""
    with open_file(path) as file:
        header = scan(file, 0x00200037)
        if header is not None:
            return _normal(header.get("ImageOrientationPatient"))
        dataset = pydicom.dcmread(file, specific_tags=["NumberOfFrames", "ImageOrientationPatient"], force=True)
        count = int(dataset.get("NumberOfFrames") or 1)
        if count == 1:
            return _normal(dataset.get("ImageOrientationPatient"))
        if count > _MOST_IMAGES:
            return []
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    normals = []
    for groups in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        for plane in groups.get("PlaneOrientationSequence") or shared[0].get("PlaneOrientationSequence") or []:
            normals += _normal(plane.get("ImageOrientationPatient"))
    return normals


def _normal(axes: Sequence[float] | None) -> list[np.ndarray]:
    if axes is None or len(axes) != 6:
        return []
    along_row, along_column = np.array([float(value) for value in axes]).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    return [normal / np.linalg.norm(normal)] if np.linalg.norm(normal) > 0 else []
