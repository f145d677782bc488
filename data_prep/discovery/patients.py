"""Whose images a path names: BIDS subject, or the folder level or file name whose names differ."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePath

from data_prep.discovery import labelmaps, sequences, times
from data_prep.volumes import images
from meddap.settings import SettingsError

BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?:[/_](ses-[A-Za-z0-9]+))?")
MISSED = "its path does not match the pattern `patient`, or names nobody by it"
# Folders called by these words alone divide or describe images; they name nobody
_WORDS = frozenset(
    "train training tr trn val valid validation vl test testing tst ts dev holdout heldout split set sets stage "
    "image images img imgs imgstr scan scans volume volumes vol vols case cases data dataset datasets raw input inputs "
    "source original ct cts mr mri mrs pet pt cta mra cect ncct cbct modality nifti nii niftis dicom dicoms dcm dcms "
    "label labels labeled labelled unlabeled unlabelled mask masks seg segs segmentation segmentations annotation "
    "annotations gt patients subjects hgg lgg benign malignant normal abnormal healthy control controls positive "
    "negative pos neg and of the with".split()
)
_LABELS = frozenset("mask masks seg segs segm segmentation segmentations label labels annotations contours".split())
_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Folders called like this, numbered or lettered, divide images as well: subset0, fold_1, Site-A
_NUMBERED = re.compile(
    r"(training|test|train)?[-_ ]?(subset|fold|part|batch|split|set|chunk|stage|group|site|cent(er|re)|hospital|clinic|"
    r"institution|scanner|vendor|cohort|class|grade)s?[-_ ]?(\d{1,3}|[a-z])",
    re.IGNORECASE,
)
# Words of file names that tell times and phases of one patient apart
_TIMES = frozenset(
    "pre post baseline followup followups follow up fu bl arterial venous portal delayed late early native nativ plain "
    "noncontrast contrast nc ce art ven del".split()
)
_SESSION_WORD = re.compile(r"_(?:ses|session|visit|timepoint|tp|baseline|followup|fu)_?\d{0,3}(?=_|$)")
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Rule:
    """How paths name patients.

    setting   patient_from
    level     the folder, from 0, whose name is the patient's; None: the file's name
    skipped   names of the levels above it: one where all images lie in it, several where they only divide them
    channels  whether file names end with the number of a channel that is not the patient's
    folders   folders whose files are one study, which names no patient by its files
    pattern   the user's regular expression of paths (`patient`), which counts before all else; None: there is none
    """

    setting: str
    level: int | None = 0
    skipped: tuple[tuple[str, ...], ...] = ()
    channels: bool = False
    folders: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None

    def of(self, path: PurePath) -> str:
        """Return the patient of a file, by its path below its input; the path itself where the pattern misses it."""
        if self.pattern:
            return _by_pattern(self.pattern, path) or path.as_posix()
        if bids := BIDS.search(str(path)):
            return bids[1]
        folders = path.parts[:-1]
        if self.setting == "parent_folder" and folders:
            return str(path.parent)
        if self.setting == "first_folder" and folders:
            return folders[0]
        if self.setting == "auto":
            if self.level is not None and len(folders) > self.level:
                return times.of_folder(folders[self.level])
            if str(path.parent) in self.folders:
                return str(path.parent)
            if base := _base(path, self.channels):
                return base
        return images.stem(path.name) if images.is_image(path.name) else path.name

    def misses(self, path: PurePath) -> bool:
        """Return whether the user's pattern names nobody in a path."""
        return self.pattern is not None and not _by_pattern(self.pattern, path)

    def said(self, show_names: bool) -> str:
        """Return which names are the patients', for the console; folders that may name somebody if `show_names`."""
        if self.pattern:
            return "the pattern given (patient)"
        if self.setting != "auto":
            return f"patient_from={self.setting}"
        above = "/".join(
            "|".join(names) if show_names or all(map(is_word, names)) else "…" for names in self.skipped if names
        )
        below = f" ({above}/*)" if above else ""
        return f"file name{below}" if self.level is None else f"folder level {self.level + 1}{below}"


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return the user's pattern of paths; None where there is none. Raises SettingsError for an invalid one."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise SettingsError(f"patient={pattern}: not a regular expression ({error})") from error


def _by_pattern(pattern: re.Pattern[str], path: PurePath) -> str:
    """Return whom a pattern names in a path below the input: its first group, or all of it; "" for nobody."""
    match = pattern.search(path.as_posix())
    return (match[1 if pattern.groups else 0] or "") if match else ""


def rule(paths: Iterable[PurePath], setting: str, studies: Collection[str] = (), pattern: str = "") -> Rule:
    """Return how the paths of images, below their inputs, name patients.

    studies  folders (relative paths) whose files are one study
    pattern  regular expression that the user gave, or ""

    With auto the patient is the first folder, from the top, where the names differ. A level is passed over where all
    names are words that divide images (train, val, imagesTr, CT, MR), and where all images lie in one folder, if
    anything below it tells them apart. A level of dates, visits or phases (2019-03-04, visit1, arterial) is passed over
    if folders or files below it bear names of their own; else the one folder above it is the patient. What says a time
    behind a folder's name (P7_visit1) is not the patient's. Where no folder is left, the file's name without words of
    sequence, phase, image and label map is. The order of the paths does not matter.
    """
    if setting != "auto" or pattern:
        return Rule(setting, pattern=_compiled(pattern))
    every = sorted({path for path in paths if not BIDS.search(str(path))})
    channels = _numbered_channels(path for path in every if images.is_image(path.name))
    keys = [(path.parts[:-1], "" if str(path.parent) in studies else _base(path, channels)) for path in every]
    skipped: list[tuple[str, ...]] = []
    level = 0
    while True:
        names = {folders[level] for folders, _ in keys if len(folders) > level}
        direct = any(len(folders) == level for folders, _ in keys)
        if not names:
            break
        alone = len(names) == 1 and not direct and _differ(keys, level + 1)
        if not all(map(is_word, names)) and not alone and not _divides(names, keys, level, skipped):
            break
        skipped.append(tuple(sorted(names)))
        level += 1
    if names:
        sessions = all(map(times.is_time, names)) and len(names) > 1
        if sessions and skipped and len(skipped[-1]) == 1 and not is_word(skipped[-1][0]):
            level, skipped = level - 1, skipped[:-1]
        return Rule(setting, level, tuple(skipped), channels)
    if any(base for _, base in keys) or not any(folders for folders, _ in keys):
        return Rule(setting, None, tuple(skipped), channels, frozenset(studies))
    return Rule(setting)  # their names say nothing: one patient, named by the first folder


def is_word(name: str) -> bool:
    """Return whether a folder's name only divides or describes images: train, imagesTr, T1, fold_3."""
    if _NUMBERED.fullmatch(name):
        return True
    lower = sequences.tokens(name)
    if lower and all(word in sequences.TOKENS or word in _WORDS for word in lower):
        return True
    if lower and lower[-1] in _LABELS and name.isascii() and not any(map(str.isdigit, name)):
        return True  # lung_mask, tumor-labels
    words = [word.lower() for word in _SPLIT.findall(name)]
    return bool(words) and all(word in _WORDS for word in words)


def _divides(
    names: Collection[str], keys: list[tuple[tuple[str, ...], str]], level: int, skipped: list[tuple[str, ...]]
) -> bool:
    """Return whether a level holds times of several patients: dates, visits, phases with names of their own below."""
    if not all(map(times.is_time, names)):
        return False
    below = {folders[level + 1] for folders, _ in keys if len(folders) > level + 1}
    if any(len(folders) == level + 1 for folders, _ in keys):  # files lie directly in them
        bases = {base for folders, base in keys if len(folders) == level + 1}
        known = all(len(each) > 1 or is_word(each[0]) for each in skipped)  # no folder above may be the patient's
        numbered = all(any(map(str.isdigit, base)) for base in bases)
        return known and not below and len(bases) > 1 and numbered and not any(map(times.is_date, names))
    return not all(is_word(name) or times.is_time(name) or times.is_numbered_word(name) for name in below)


def _differ(keys: list[tuple[tuple[str, ...], str]], level: int) -> bool:
    """Return whether a folder from `level` on, or a file's name, tells the images apart."""
    deepest = max(len(folders) for folders, _ in keys)
    for depth in range(level, deepest):
        names = {folders[depth] for folders, _ in keys if len(folders) > depth}
        if len(names) > 1 and not all(map(is_word, names)):
            return True
    return len({base for _, base in keys if base}) > 1


def _base(path: PurePath, channels: bool) -> str:
    """Return what a file's name says beside words of sequence, phase, session, image and label map, and a date."""
    if not images.is_image(path.name):
        return path.name
    stem = images.stem(path.name)
    if channels and (channel := _CHANNEL.search(stem)):
        stem = stem[: channel.start()]
    base = _SESSION_WORD.sub("", labelmaps.base(f"{stem}.nii"))
    return times.of_file("_".join(word for word in base.split("_") if word not in _TIMES))


def _numbered_channels(paths: Iterable[PurePath]) -> bool:
    """Return whether all names end with a number that counts channels: each case has the same ones, 0000 first."""
    cases: dict[str, set[str]] = {}
    for path in paths:
        channel = _CHANNEL.search(images.stem(path.name))
        if channel is None:
            return False
        case = str(path.parent / images.stem(path.name)[: channel.start()])
        cases.setdefault(case, set()).add(channel[1])
    numbers = {tuple(sorted(found)) for found in cases.values()}
    return len(cases) > 1 and len(numbers) == 1 and numbers.pop()[0] == "0000"
