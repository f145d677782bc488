"""Standardised uptake values by body weight (SUVbw) of PET, from what the headers say about dose, weight and times.

SUVbw = activity (Bq/ml) · weight (g) / dose (Bq), the dose decayed as the activities are: to the start of the scan
(DecayCorrection START) or not at all (ADMIN). The start is SeriesTime, or the earliest AcquisitionTime where SeriesTime
lies after it, as in series that were computed later (QIBA FDG-PET/CT profile, vendor-neutral pseudo-code). An enhanced
file says itself to which time its activities were corrected (DecayCorrectionDateTime, PS3.3, C.8.22).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import pydicom

from data_prep.dicom import frames, pixels
from data_prep.dicom.files import open_file
from data_prep.dicom.whitelist import number, term
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries

_COUNTS = "; pet.values=stored takes the stored values"
_UNITS = {"CNTS", "PROPCNTS", "CM2", "PCNT", "CPS", "UMOLML", "MGMINML", "MLMING", "1CM", "STDDEV", "NONE", "CM2ML"}
_CORRECTIONS = ("AttenuationCorrected", "DecayCorrected")  # of enhanced PET
_DAY = timedelta(days=1)
# what a dose in Bq and a weight in kg can be
_DOSES, _WEIGHTS = (1e6, 1e11), (0.2, 400.0)


def factor(paths: Sequence[str]) -> tuple[float, dict[str, object]]:
    """Return what the activities of a PET series are multiplied with, and notes. Raises RejectedSeries."""
    headers = [_read(path) for path in paths]
    first = headers[0]
    if enhanced := any("PerFrameFunctionalGroupsSequence" in header for header in headers):
        headers = [flat for header in headers for flat in frames.flattened(header)]
        first = headers[0]
        if len({str(flat.get("Units")) for flat in headers}) > 1:
            raise RejectedSeries(f"frames in several units: no SUV{_COUNTS}")
    units = str(first.get("Units") or "").strip().upper()
    if units == "GML":
        if (kind := str(first.get("SUVType") or "BW").strip().upper()) != "BW":
            raise RejectedSeries(
                f"SUV by {term(kind, {'BSA', 'LBM', 'LBMJAMES128', 'LBMJANMA', 'IBW'}, 'another rule')}"
            )
        return 1.0, {"suv": "stored as SUV"}
    if units != "BQML":
        raise RejectedSeries(f"Units {term(units, _UNITS, 'unknown')}, not BQML: no SUV{_COUNTS}")
    if enhanced:
        if missing := [name for name in _CORRECTIONS if str(first.get(name) or "").strip().upper() != "YES"]:
            raise RejectedSeries(f"{', '.join(missing)} is not YES: no SUV{_COUNTS}")
    else:
        corrected = {str(word).strip().upper() for word in _values(first.get("CorrectedImage"))}
        if missing := [word for word in ("ATTN", "DECY") if word not in corrected]:
            raise RejectedSeries(f"CorrectedImage lacks {', '.join(missing)}: no SUV{_COUNTS}")
    weight = _within(first, "PatientWeight", first.get("PatientWeight"), *_WEIGHTS, "kg")
    tracers = first.get("RadiopharmaceuticalInformationSequence") or []
    if len(tracers) != 1:
        raise RejectedSeries(f"{len(tracers)} radiopharmaceuticals: no SUV{_COUNTS}")
    tracer = tracers[0]
    dose = _within(tracer, "RadionuclideTotalDose", tracer.get("RadionuclideTotalDose"), *_DOSES, "Bq")
    decay = str(first.get("DecayCorrection") or "").strip().upper()
    if decay == "ADMIN" and not enhanced:
        return weight * 1000 / dose, {"suv": "by body weight"}
    if decay != "START" and not enhanced:
        raise RejectedSeries(f"DecayCorrection {term(decay, {'NONE'}, 'unknown')}: no SUV{_COUNTS}")
    half_life = _within(tracer, "RadionuclideHalfLife", tracer.get("RadionuclideHalfLife"), 1, 1e8, "s")
    begun, notes = _corrected_to(headers) if enhanced else _start(headers)
    given = _administered(tracer, begun)
    if not timedelta(0) <= begun - given <= _DAY:
        raise RejectedSeries(
            f"the scan begins {(begun - given).total_seconds() / 3600:.1f} h after the injection: no SUV"
        )
    decayed = dose * 2 ** (-(begun - given).total_seconds() / half_life)
    return weight * 1000 / decayed, {"suv": "by body weight", **notes}


def _read(path: str) -> pydicom.Dataset:
    try:
        with open_file(path) as file:
            return pydicom.dcmread(file, stop_before_pixels=True, force=True)
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(pixels.unreadable(error)) from error


def _values(value: object) -> list[object]:
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]


def _within(holder: pydicom.Dataset, name: str, value: object, low: float, high: float, unit: str) -> float:
    """Return a number of the header. Raises RejectedSeries if it is missing or cannot be right."""
    found = number(value, below=math.inf)  # doses in Bq are large
    if found is None:
        raise RejectedSeries(f"{name} is missing: no SUV{_COUNTS}")
    if not low <= found <= high:
        raise RejectedSeries(f"{name} is not between {low:g} and {high:g} {unit}: no SUV{_COUNTS}")
    return found


def _start(headers: list[pydicom.Dataset]) -> tuple[datetime, dict[str, object]]:
    """Return when the scan began, and a note where SeriesTime does not say it."""
    acquired = [time for header in headers if (time := _time(header, "Acquisition"))]
    if not acquired:
        raise RejectedSeries(f"AcquisitionDate and AcquisitionTime are missing: no SUV{_COUNTS}")
    series = _time(headers[0], "Series")
    if series is not None and series <= min(acquired):
        return series, {}
    return min(acquired), {"scan_start": "the earliest AcquisitionTime"}


def _corrected_to(headers: list[pydicom.Dataset]) -> tuple[datetime, dict[str, object]]:
    """Return the time to which the activities of enhanced files were corrected, the same for all of them."""
    times = {_parsed(str(header.get("DecayCorrectionDateTime") or "").strip()) for header in headers}
    (time, *others) = times
    if time is None or others:
        what = "differs between files" if len(times) > 1 else "is missing, or has an offset from UTC"
        raise RejectedSeries(f"DecayCorrectionDateTime {what}: no SUV{_COUNTS}")
    return time, {}


def _time(header: pydicom.Dataset, name: str) -> datetime | None:
    """Return the date and time of a header, both needed; None if one is missing or cannot be read."""
    date = str(header.get(f"{name}Date") or "").strip()
    return _parsed(date + str(header.get(f"{name}Time") or "").strip()) if date else None


def _parsed(text: str) -> datetime | None:
    """Return the time of YYYYMMDDHHMMSS.FFFFFF (PS3.5, DT); None without hours, or with an offset from UTC."""
    digits = text.partition(".")[0].ljust(14, "0")
    if "+" in text or "-" in text or len(text) < 10 or len(digits) != 14 or not digits.isdecimal():
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _administered(tracer: pydicom.Dataset, begun: datetime) -> datetime:
    """Return when the dose was given: its date and time, or its time on the day of the scan or the day before."""
    if given := _parsed(str(tracer.get("RadiopharmaceuticalStartDateTime") or "").strip()):
        return given
    time = str(tracer.get("RadiopharmaceuticalStartTime") or "").strip()
    given = _parsed(begun.strftime("%Y%m%d") + time) if time else None
    if given is None:
        raise RejectedSeries(f"the time of the injection is missing: no SUV{_COUNTS}")
    return given - _DAY if given > begun else given  # over midnight
