"""Input series, the patients that they belong to, and MR series grouped into studies."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePath

from data_prep.config import MriConfig
from data_prep.discovery import labelmaps, sequences
from data_prep.volumes import images

NO_UID = "folder:"  # start of the name of a series whose files have no SeriesInstanceUID
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?:[/_](ses-[A-Za-z0-9]+))?")


@dataclass(frozen=True)
class Series:
    """One input series. `name` (its path below the input) and `uid` identify a patient: never stored."""

    name: str
    files: tuple[str, ...]
    dicom: bool
    uid: str

    @property
    def kind(self) -> str:
        """The evidence that its files are one series, for the manifest."""
        if not self.dicom:
            return "image"
        return "dicom without SeriesInstanceUID, by folder" if self.uid.startswith(NO_UID) else "dicom"


@dataclass(frozen=True)
class Item:
    """A series with patient and study from its header or path; none of it is stored."""

    series: Series
    patient: str
    study: str


@dataclass(frozen=True)
class Group:
    """Series that are converted together."""

    patient: str
    study: str
    series: list[Series]


def patient_of(name: PurePath, rule: str) -> str:
    """Return the patient of a file by its relative path: BIDS subject, else first folder, parent folder or stem."""
    if bids := _BIDS.search(str(name)):
        return bids[1]
    if rule == "file" or len(name.parts) == 1:
        return images.stem(name.name) if images.is_image(name.name) else name.name
    return name.parts[0] if rule == "first_folder" else str(name.parent)


def group(singles: list[Item], dicoms: list[Item], config: MriConfig) -> list[Group]:
    """Group DICOM by StudyInstanceUID, files by BIDS session, folder or the common start of their names."""
    studies: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for item in dicoms:
        studies[item.patient, f"uid:{item.study or item.series.uid}"].append(item.series)
    by_folder: dict[str, list[Item]] = defaultdict(list)
    for item in singles:
        by_folder[os.path.dirname(item.series.name)].append(item)
    for folder, items in by_folder.items():
        together = _one_study(folder, items, config)
        for item in items:
            name = os.path.basename(item.series.name)
            bids = _BIDS.search(item.series.name)
            if bids and config.study_from == "auto":
                studies[bids[1], f"bids:{bids[2] or ''}"].append(item.series)
            elif together:
                studies[item.patient if folder else ".", f"folder:{folder}"].append(item.series)
            else:
                base = labelmaps.base(name)
                patient = item.patient if folder else base or item.patient
                studies[patient, f"name:{os.path.join(folder, base)}"].append(item.series)
    return [
        Group(patient, study, sorted(members, key=lambda series: series.name))
        for (patient, study), members in studies.items()
    ]


def _one_study(folder: str, items: list[Item], config: MriConfig) -> bool:
    """Return whether a folder's image files are one study: as configured, or if no sequence comes twice."""
    if config.study_from != "auto":
        return config.study_from == "folder"
    guesses = [_sequence(item.series, config) for item in items]
    named = [guess for guess in guesses if guess]
    return bool(folder) and len(set(named)) == len(named)


def _sequence(series: Series, config: MriConfig) -> str | None:
    guess = sequences.by_pattern([series.name, os.path.basename(series.name)], config.sequences)
    guess = guess or sequences.by_name(PurePath(series.name))
    return guess.sequence if guess else None
