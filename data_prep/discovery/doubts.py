"""Doubts about who is a patient: one for many images by their paths, one PatientID for many folders and studies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_prep.config import PrepConfig

_FEW = 8  # images that one patient may have without a word
_SHARE, _MANY = 0.1, 50  # of all images named by paths, or so many: then one with more than a few is doubtful
_PLACES = 4  # patients by path, and studies, that one PatientID may have one less of
_ID_SHARE = 0.25  # of all patients by path that one PatientID may cover
_PLACEHOLDERS = set(
    "anon anonym anonyme anonymous anonymized anonymised anonymisiert deidentified deid none null nan na unknown "
    "unbekannt inconnu undefined patient patientid patientname id pid noid noname name test testpatient removed "
    "deleted redacted hidden blank dummy default empty notavailable notapplicable withheld confidential masked".split()
)


@dataclass(frozen=True)
class Named:
    """An image or study and what names its patient.

    patient  as it is used
    place    the patient that its path names, or would name
    folder   the same, or a folder above that holds all of them and may be the patient's own
    study    what identifies its study; "" if nothing does
    by_id    whether the PatientID of its header names it
    trusted  whether a BIDS name or a layout does
    """

    patient: str
    place: str
    folder: str
    study: str
    by_id: bool
    trusted: bool = False


def warnings(
    everyone: Iterable[Named], persons: Mapping[str, tuple[set[str], set[str]]], config: PrepConfig
) -> list[str]:
    """Return a line for each kind of doubt, with the setting that mends it; none quotes an id.

    persons  PatientID → birth dates and sexes in its headers
    """
    named = list(everyone)
    by_path = [one for one in named if not (one.by_id or one.trusted)]
    return [*_of_paths(by_path, config), *_of_ids([one for one in named if one.by_id], persons)]


def is_placeholder(patient: str) -> bool:
    """Return whether a PatientID is what de-identification writes for everybody: ANONYMOUS, 0, none, xxx …"""
    word = re.sub(r"[\W_]+", "", patient.casefold())
    repeated = len(set(word)) == 1 and (word[0] == "0" or len(word) > 2)  # 0, 000, XXX, 9999
    return not word or repeated or word in _PLACEHOLDERS or word.startswith(("anonym", "deident"))


def _of_paths(by_path: list[Named], config: PrepConfig) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for one in by_path:
        counts[one.patient] += 1
    total = len(by_path)
    doubtful = [count for count in counts.values() if count > _FEW and (count >= _SHARE * total or count >= _MANY)]
    if not doubtful:
        return []
    who = "one patient has" if len(doubtful) == 1 else f"{len(doubtful)} patients have"
    others = [rule for rule in ("first_folder", "parent_folder", "file") if rule != config.patient_from]
    return [
        f"{who} {sum(doubtful)} of {total} images, named by their paths (patient_from={config.patient_from}); if they "
        f"are of more patients, {' or '.join(f'patient_from={rule}' for rule in others)} tells them apart"
    ]


def _of_ids(by_id: list[Named], persons: Mapping[str, tuple[set[str], set[str]]]) -> list[str]:
    places: dict[str, set[str]] = defaultdict(set)
    folders: dict[str, set[str]] = defaultdict(set)
    studies: dict[str, set[str]] = defaultdict(set)
    for one in by_id:
        places[one.patient].add(one.place)
        folders[one.patient].add(one.folder)
        studies[one.patient].add(one.study or one.place)
    total = len(set().union(*places.values()))
    mends = "if they are of several patients, patient_id=path takes their paths"
    lines = []
    placeholders, many = [], []
    for patient, own in places.items():
        if min(len(own), len(studies[patient])) > 1 and is_placeholder(patient):
            placeholders.append(patient)
        elif min(len(folders[patient]), len(studies[patient])) >= _PLACES and (
            len(own) >= _ID_SHARE * total or len(own) >= _MANY
        ):
            many.append(patient)
    for those, kind in ((placeholders, ", a placeholder as de-identification writes it,"), (many, "")):
        if those:
            there, count = (sum(len(each[patient]) for patient in those) for each in (places, studies))
            who = f"one PatientID{kind} covers" if len(those) == 1 else f"{len(those)} PatientIDs{kind} cover"
            lines.append(f"{who} {there} folders with {count} studies; {mends}")
    known = {*placeholders, *many}
    shared = [
        patient for patient in places if patient not in known and max(map(len, persons.get(patient, ((), ())))) > 1
    ]
    if shared:
        who = "one PatientID has" if len(shared) == 1 else f"{len(shared)} PatientIDs have"
        lines.append(f"{who} several birth dates or sexes; {mends}")
    return lines
