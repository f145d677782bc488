"""Names that say when or how a patient was imaged, not who it is: dates, visits, phases, repetitions, kernels."""

from __future__ import annotations

import re

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_SEP = r"[-_. ]?"
_CLOCK = rf"(?:[-_. T](?:[01]\d|2[0-3]){_SEP}?[0-5]\d(?:{_SEP}?[0-5]\d)?(?:[._]\d+)?)?"
_DATE = (
    rf"(?:{_YEAR}{_SEP}{_MONTH}{_SEP}{_DAY}|{_MONTH}[-_.]{_DAY}[-_.]{_YEAR}|{_DAY}[-_.]{_MONTH}[-_.]{_YEAR}){_CLOCK}"
)
_VISIT = (
    r"(?:ses|session|visit|timepoint|time|tp|baseline|bl|follow[-_ ]?up|fu|week|wk|month|day|year)s?"
    r"[-_ ]?\d{0,4}[dmwy]?"
)
_TREATMENT = r"(?:pre|post|intra)[-_ ]?(?:op|operative|surgery|treatment|tx|rt|therapy|chemo|contrast)"
_PHASE = (
    r"(?:pre|post|baseline|follow[-_ ]?up|arterial|late[-_ ]?arterial|early[-_ ]?arterial|venous|portal|"
    r"portal[-_ ]?venous|delayed|equilibrium|nephrographic|excretory|native?|plain|non[-_ ]?contrast|contrast)"
)
# What stands behind the number of a patient: a repetition, a time point, a kernel, a thickness, a side, a breath
_REPETITION = r"(?:scan|series|ser|acq|run|rep|repeat|exam|study|recon|rec|stack|v|t)[-_ ]?\d{1,3}"
_RECONSTRUCTION = (
    r"(?:[bhij][rlvqf]?\d\d[a-z]?|soft|lung|bone|sharp|smooth|std|standard|thin|thick|\d{1,2}(?:[._]\d{1,3})?mm)"
)
_SIDE = (
    r"(?:left|right|l|r|lt|rt|insp|exp|inspiration|expiration|inhale|exhale|[ie]bhct|bl|fu|ax|axial|tra|sag|sagittal|cor|"
    r"coronal|space|cube|vista|haste|tse|fse|fs|stir|dixon)"
)
# dcm2niix ends names with the time of a series to the second and its number
_STAMP = rf"{_YEAR}{_MONTH}{_DAY}(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:_\d+[a-z]*)?"
_DATES = re.compile(_DATE, re.IGNORECASE)
_TIMES = re.compile(f"{_DATE}|{_VISIT}|{_TREATMENT}|{_PHASE}", re.IGNORECASE)
_BEHIND = re.compile(
    rf"(.*?\d.*?)[-_. ]+(?:{_STAMP}|{_DATE}|{_VISIT}|{_TREATMENT}|{_PHASE}|{_REPETITION}|{_RECONSTRUCTION}|{_SIDE})"
    r"(?=[-_. ]|$)",
    re.IGNORECASE,
)
# Behind a folder's name, only what cannot be a part of a person's number
_FOLDER = re.compile(rf"(.*\d.*?|(?!{_VISIT}).+?(?=[-_. ]+{_VISIT}$))[-_. ]+(?:{_DATE}|{_VISIT}|{_TREATMENT}|{_PHASE})"
                     r"(?=[-_. ]|$)", re.IGNORECASE)  # fmt: skip
_IN_FRONT = re.compile(rf"{_DATE}[-_. ]+(.*\d.*)", re.IGNORECASE)
_WORD_AND_NUMBER = re.compile(
    r"(?:ct|mr|mri|pet|scan|image|img|series|ser|se|study|st|exam|acq|acquisition|recon|slice|slices|vol|volume|phase|"
    r"stack|run|echo|dicom|dcm|nifti)?[-_ ]?\d{0,3}",
    re.IGNORECASE,
)


def is_time(name: str) -> bool:
    """Return whether a folder's name is a date, a visit or a phase: 2019-03-04, visit1, preop, portal_venous."""
    return bool(_TIMES.fullmatch(name))


def is_year(name: str) -> bool:
    """Return whether a name is a year, which may as well be a number."""
    return bool(re.fullmatch(_YEAR, name))


def is_date(name: str) -> bool:
    """Return whether a name is a date to the day."""
    return bool(_DATES.fullmatch(name))


def of_folder(name: str) -> str:
    """Return the name of a patient's folder without the date, visit or phase behind it: P07_visit1 is P07."""
    return _without(_FOLDER, name)


def of_file(name: str) -> str:
    """Return what names a patient in a file's name, without what stands behind a number and tells images apart.

    p07_scan2, p07_B30f, p07_5mm, p07_left and p07_20190304 are p07.
    """
    return _without(_BEHIND, name)


def dated_in_front(name: str) -> str:
    """Return what stands behind a date at the front of a name, if it holds a number; else ""."""
    found = _IN_FRONT.fullmatch(name)
    return found[1] if found else ""


def is_numbered_word(name: str) -> bool:
    """Return whether a name is a short number, or a word for an image and one: 3, CT 2, series_004."""
    return bool(_WORD_AND_NUMBER.fullmatch(name)) and not re.fullmatch(r"\d{3,}", name)


def _without(pattern: re.Pattern[str], name: str) -> str:
    while found := pattern.match(name):
        name = found[1] + name[found.end() :]
    return name
