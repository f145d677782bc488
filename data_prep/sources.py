"""Finds the input series below a folder: NIfTI by name, DICOM by content."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from data_prep import dicom, labelmaps, nifti
from data_prep.volume import RejectedSeries


@dataclass(frozen=True)
class Source:
    """One input series.

    name         path relative to the input folder (the file, or the folder of a DICOM series); never stored
    files        its files, sorted
    kind         "nifti" or "dicom"
    patient      PatientID or what the folders say; never stored
    series       SeriesInstanceUID or `name`; never stored
    fingerprint  SHA-256 over names, sizes and times of the files and the label map: has the input changed?
    labelmap     file of its label map, if any
    problem      why it cannot be read, known from discovery already
    """

    name: str
    files: tuple[Path, ...]
    kind: str
    patient: str
    series: str
    fingerprint: str
    labelmap: Path | None = None
    problem: str | None = None


@dataclass
class Found:
    """All series of a folder, sorted by name, and how many files are no images."""

    sources: list[Source]
    ignored: int


def discover(root: Path, masks: Path | None, patient_from: str) -> Found:
    """Walk `root`. What cannot be opened becomes a Source with a `problem`; nothing is passed over in silence.

    Links to folders are not followed, so that no loop is entered.
    """
    builder = _Builder(root, masks, patient_from)
    for folder, names, files in os.walk(root, onerror=builder.unreadable_folder):
        names.sort()
        for file in sorted(files):
            builder.add(Path(folder) / file)
    return builder.finish()


class _Builder:
    def __init__(self, root: Path, masks: Path | None, patient_from: str) -> None:
        self.root, self.masks, self.patient_from = root, masks, patient_from
        self.sources: list[Source] = []
        self.series: dict[tuple[str, str], list[dicom.Header]] = defaultdict(list)
        self.ignored = 0

    def unreadable_folder(self, error: OSError) -> None:
        path = Path(error.filename)
        self.sources.append(self._source(path, (), "folder", problem=f"folder cannot be read ({error.strerror})"))

    def add(self, path: Path) -> None:
        if path.name.endswith(nifti.SUFFIXES):
            if path.name not in labelmaps.NAMES:
                self.sources.append(self._source(path, (path,), "nifti"))
            return
        try:
            if dicom.is_dicom(path):
                header = dicom.read_header(path)
                self.series[header.series, str(path.parent)].append(header)
            elif path.suffix.lower() == ".dcm":
                raise RejectedSeries("no DICOM file, although named .dcm")
            else:
                self.ignored += 1
        except (RejectedSeries, OSError) as error:
            problem = error.reason if isinstance(error, RejectedSeries) else f"cannot be read ({error.strerror})"
            self.sources.append(self._source(path, (path,), "dicom", problem=problem))

    def finish(self) -> Found:
        folders: dict[str, int] = defaultdict(int)
        for _, folder in self.series:
            folders[folder] += 1
        for (series, folder), headers in self.series.items():
            files = tuple(sorted(header.path for header in headers))
            # a folder that holds several series is told apart by its files
            place = Path(folder) if folders[folder] == 1 else files[0]
            self.sources.append(self._source(place, files, "dicom", patient=headers[0].patient, series=series))
        return Found(sorted(self.sources, key=lambda source: (source.name, source.series)), self.ignored)

    def _source(
        self,
        path: Path,
        files: tuple[Path, ...],
        kind: str,
        patient: str = "",
        series: str = "",
        problem: str | None = None,
    ) -> Source:
        name = str(path.relative_to(self.root))
        labelmap = None if problem else labelmaps.find(path, self.root, self.masks)
        return Source(
            name=name,
            files=files,
            kind=kind,
            patient=patient or patient_of(Path(name), self.patient_from),
            series=series or name,
            fingerprint=fingerprint(files + ((labelmap,) if labelmap else ()), self.root),
            labelmap=labelmap,
            problem=problem,
        )


def patient_of(name: Path, rule: str) -> str:
    """The patient by a relative path: its first folder (the default), its own folder, or the file's stem."""
    if rule == "file" or len(name.parts) == 1:
        return nifti.stem(name)
    return name.parts[0] if rule == "first_folder" else str(name.parent)


def fingerprint(files: tuple[Path, ...], root: Path) -> str:
    """SHA-256 over relative names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{os.path.relpath(path, root)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
