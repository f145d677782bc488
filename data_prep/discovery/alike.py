"""Doubts about patients whom paths name: names that are alike, years and dates as names, numbers below a word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath

from data_prep.discovery import patients, times
from data_prep.discovery.patients import Rule
from data_prep.volumes import images

_PART = re.compile(r"\d+|[^\W\d_]+")
_DATED = re.compile(r"(?<=\d)(?=(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])$)")
_SHARE = 0.3  # of all patients that must be in doubt for a line
_MANY = 4  # numbered folders or files in each of a few folders, from which on these may be no patients
_NUMBER = 4  # digits from which on a number in front stands for a person by itself
_MENDS = "patient=REGEX of the path, whose group is the patient, names them"


def warnings(rule: Rule, paths: Iterable[PurePath]) -> list[str]:
    """Return a line for each kind of doubt about the patients of paths below their inputs; none quotes a name."""
    if rule.setting != "auto" or rule.pattern:
        return []
    files: dict[str, list[PurePath]] = defaultdict(list)
    for path in paths:
        files[rule.of(path)].append(path)
    if len(files) < 2:
        return []
    lines = [_times(rule, set(files)), _around_numbers(rule, files), _alike(set(files)), _same_files(rule, files)]
    return [f"{line}; {_MENDS}" for line in lines if line]


def of_ids(ids: Collection[str]) -> list[str]:
    """Return a line if PatientIDs differ only in case, separators, zeros in front, or a date or visit behind them."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in ids:
        bare = times.of_file(name.strip())
        groups["_".join(part.casefold().lstrip("0") or "0" for part in _PART.findall(bare)) or name].add(name)
    several = [own for own in groups.values() if len(own) > 1]
    if not several:
        return []
    return [
        f"{sum(map(len, several))} of {len(ids)} PatientIDs differ only in case, separators, zeros or a date or visit "
        f"behind them, as if of {len(several)} patients; patient_id=path, with patient=REGEX, takes their paths instead"
    ]


def beside_ids(rule: Rule, by_path: Iterable[PurePath], by_id: Iterable[tuple[PurePath, str]]) -> list[str]:
    """Return a line if images and DICOM series of one folder are of two patients, one by its path, one by PatientID.

    by_id  paths of DICOM series, and their PatientID
    """
    if rule.level is None or rule.pattern:
        return []
    owners: dict[str, set[str]] = defaultdict(set)
    for path, patient in by_id:
        if len(path.parts) > rule.level + 1:
            owners[rule.of(path)].add(patient)
    named = {rule.of(path) for path in by_path}
    apart = [name for name in named if len(owners[name]) == 1 and name not in owners[name]]
    if not apart:
        return []
    return [
        f"{len(apart)} patients by their paths lie in folders whose DICOM series have one other PatientID each; if "
        "they are the same patients, patient_id=path takes the paths of all"
    ]


def _times(rule: Rule, names: set[str]) -> str:
    """Return a line if years or dates are taken for patients."""
    if rule.level is None:
        return ""
    for what, of in (("years", times.is_year), ("dates, visits or phases", times.is_time)):
        if all(map(of, names)):
            return f"the {len(names)} patients by folders look like {what}; if they are not numbers of patients"
    return ""


def _around_numbers(rule: Rule, files: Mapping[str, list[PurePath]]) -> str:
    """Return a line if the patients are folders without a number around numbered folders or files: sites, diagnoses."""
    if rule.level is None:
        return ""
    below: set[tuple[str, str]] = set()
    for name, paths in files.items():
        for path in paths:
            folders = [part for part in path.parts[rule.level + 1 : -1] if not patients.is_word(part)]
            numbered = [part for part in folders if any(map(str.isdigit, part))]
            below.add((name, [*numbered, *folders, images.stem(path.name)][0]))
    inner = [name for _, name in below if any(map(str.isdigit, name)) and not times.is_time(name)]
    inner = [name for name in inner if name.isdigit() or not times.is_numbered_word(name)]
    each = len(below) / len(files)
    if each < 2 or len(inner) < 0.8 * len(below):
        return ""
    if any(map(_numbered, files)):  # deliveries, disks: few, each around many that are found nowhere else
        if each < max(_MANY, len(files) + 1) or len(set(inner)) < len(inner):
            return ""
        return (
            f"the {len(files)} patients are folders around {each:.0f} numbered folders or files each; if these are the "
            "patients"
        )
    return (
        f"the {len(files)} patients are folders without a number in their names, around {len(below)} folders or files "
        "with one; if these are the patients"
    )


def _numbered(name: str) -> bool:
    """Return whether a folder's name holds a number, other than one behind a word that divides images: CT-0."""
    letters = re.sub(r"[\W\d_]+", " ", name).strip()
    return any(map(str.isdigit, name)) and letters.lower() not in {"ct", "mr", "disc"}


def _alike(names: set[str]) -> str:
    """Return a line if names differ only in what may count images of a patient: A12_1 and A12_2, P1a and P1b."""
    groups: dict[str, set[str]] = defaultdict(set)
    rests: dict[str, set[str]] = defaultdict(set)
    members: dict[str, set[str]] = defaultdict(set)
    split = {name: [part.casefold() for part in _PART.findall(_DATED.sub("_", name))] for name in names}
    common = 0  # words behind all of them
    while len({tuple(parts[-common - 1 :]) for parts in split.values()}) == 1 and common < min(
        map(len, split.values())
    ):
        common += 1
    for name, every in split.items():
        parts = every[: len(every) - common]
        whole, start, last = "_".join(parts), "_".join(parts[:-1]), "".join(parts[-1:])
        number = next((n for n, part in enumerate(parts, 1) if part.isdigit() and len(part) >= _NUMBER), len(parts))
        person, behind_it = "_".join(parts[:number]), "_".join(parts[number:])
        for base, behind in {(whole, ""), (start, last), (person, behind_it)}:
            if base and (not behind or any(map(str.isdigit, base))):
                groups[base].add(behind)
                members[base].add(name)
                rests[behind].add(base)
        if rest := times.dated_in_front(name):
            groups[f"*{rest}"].add(name)
            members[f"*{rest}"].add(name)
    shared = {base: own for base, own in members.items() if len(own) > 1}
    found = {base: own for base, own in shared.items() if base.startswith("*") or _counts(base, groups[base], rests)}
    doubtful = set().union(*found.values()) if found else set()
    same = [own for base, own in found.items() if groups[base] == {""}]  # nothing but case and separators differs
    few = len(doubtful) < _SHARE * len(names) or max(map(len, found.values())) > max(len(found), 2)
    if not found or (few and not same):
        return ""
    return (
        f"{len(doubtful)} of {len(names)} patients by their paths have names that begin or end alike, as if of "
        f"{len(set(map(frozenset, found.values())))}; if what differs counts their images"
    )


def _counts(base: str, behind: set[str], rests: Mapping[str, set[str]]) -> bool:
    """Return whether what stands behind names may count the images of a patient: it recurs, or is a word."""
    own = behind - {""}
    number = base.rpartition("_")[2]
    long = number.isdigit() and len(number) >= _NUMBER and not times.is_year(number)
    return long or not own or sum(len(rests[each]) > 1 or each.isalpha() for each in own) >= len(own) / 2


def _same_files(rule: Rule, files: Mapping[str, list[PurePath]]) -> str:
    """Return a line if files of one numbered name lie in folders of several patients: ACC1/P7.nii and ACC2/P7.nii."""
    if rule.level is None:
        return ""
    holders: dict[str, set[str]] = defaultdict(set)
    for name, paths in files.items():
        for path in paths:
            if images.is_image(path.name) and any(map(str.isdigit, stem := images.stem(path.name))):
                holders[stem].add(name)
    several = {stem for stem, own in holders.items() if 1 < len(own) <= len(files) / 2}
    if len(several) < max(3, _SHARE * len(holders)) or len(holders) < _SHARE * len(files):
        return ""
    return (
        f"{len(several)} names of files, each with a number, lie in folders of several patients; if they name the "
        "patients"
    )
