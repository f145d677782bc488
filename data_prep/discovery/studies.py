"""Input series, the patients that they belong to, and MR series grouped into studies."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePath

from data_prep.config import MriConfig
from data_prep.discovery import labelmaps, sequences
from data_prep.discovery.patients import BIDS

NO_UID = "folder:"  # start of the name of a series whose files have no SeriesInstanceUID


@dataclass(frozen=True)
class Series:
    """One input series. `name` (its path below the input) and `uid` identify a patient: never stored.

    sequence     what the layout of its collection says it is; "" if it says nothing
    channel      its place along the fourth axis of its file, where that holds several images, and their number
    orientation  where the axes of its file run whose format does not say it ("LAS"); else ""
    """

    name: str
    files: tuple[str, ...]
    dicom: bool
    uid: str
    sequence: str = ""
    channel: tuple[int, int] | None = None
    orientation: str = ""

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


def group(singles: list[Item], dicoms: list[Item], config: MriConfig) -> list[Group]:
    """Group DICOM by StudyInstanceUID, files by BIDS session, folder or the common start of their names."""
    studies: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for item in dicoms:
        studies[item.patient, f"uid:{item.study or item.series.uid}"].append(item.series)
    by_folder: dict[str, list[Item]] = defaultdict(list)
    for item in singles:
        by_folder[os.path.dirname(item.series.name)].append(item)
    for folder, items in by_folder.items():
        together = one_study(folder, [item.series.name for item in items], config)
        first = min(item.patient for item in items)
        for item in items:
            name = os.path.basename(item.series.name)
            bids = BIDS.search(item.series.name)
            if bids and config.study_from == "auto":
                patient, whole = (item.patient, f"{bids[1]}_") if config.patient else (bids[1], "")
                studies[patient, f"bids:{whole}{bids[2] or ''}"].append(item.series)
            elif together and config.study_from == "folder":
                studies[first if folder else ".", f"folder:{folder}"].append(item.series)
            elif together:
                studies[item.patient, f"folder:{folder}"].append(item.series)
            else:
                base = labelmaps.base(name)
                named = folder or config.patient_from == "auto" or config.patient
                patient = item.patient if named else base or item.patient
                studies[patient, f"name:{os.path.join(folder, base)}"].append(item.series)
    return [
        Group(patient, study, sorted(members, key=lambda series: series.name))
        for (patient, study), members in studies.items()
    ]


def one_study(folder: str, names: list[str], config: MriConfig) -> bool:
    """Return whether a folder's image files are one study: as configured, or if no sequence comes twice."""
    if config.study_from != "auto":
        return config.study_from == "folder"
    named = named_sequences(names, config)
    return bool(folder) and len(set(named)) == len(named)


def named_sequences(names: list[str], config: MriConfig) -> list[str]:
    """Return the sequences that names of files say, in their order, without those that say none."""
    guesses = [_sequence(name, config) for name in names]
    return [guess for guess in guesses if guess]


def _sequence(name: str, config: MriConfig) -> str | None:
    guess = sequences.by_pattern([name, os.path.basename(name)], config.sequences)
    guess = guess or sequences.by_name(PurePath(name))
    return guess.sequence if guess else None
