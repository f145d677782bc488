"""The files below the input folders by kind: images by their ending, DICOM by content, and what cannot be opened."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from data_prep.dicom import headers
from data_prep.discovery import labelmaps, organs
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.studies import NO_UID
from data_prep.volumes import images
from data_prep.volumes.errors import UnreadableError
from data_prep.volumes.volume import RejectedSeries
from data_prep.workers import LostJob, Workers

_CHUNK = 128  # files whose headers one job reads


@dataclass
class Walked:
    """Files by kind, by their names (`Inputs`)."""

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    organ_candidates: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    series: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)
    segmentations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[str] = field(default_factory=list)
    ignored: int = 0


def walk(inputs: Inputs, workers: Workers, skip: Path | None) -> Walked:
    """Return what lies below the inputs, except in `skip` (the output).

    Links to folders are not followed, because they may form loops.
    """
    walked = Walked()
    for chunk, result in workers.map(_read_headers, _chunks(_others(inputs, walked, skip), inputs)):
        if isinstance(result, LostJob):  # one of them is to blame: read each by itself
            for single, alone in workers.map(_read_headers, [(chunk[0], [name]) for name in chunk[1]]):
                _sort(walked, single[1], [str(alone)] if isinstance(alone, LostJob) else alone)
        else:
            _sort(walked, chunk[1], result)
    return walked


def _others(inputs: Inputs, walked: Walked, skip: Path | None) -> Iterator[str]:
    """Yield files that may be DICOM; sort image files into `walked` on the way."""
    for start in inputs.folders:
        yield from _others_in(inputs, start, walked, skip)


def _others_in(inputs: Inputs, start: str, walked: Walked, skip: Path | None) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        place = inputs.names(error.filename, start)
        walked.problems.append((place, f"folder cannot be read ({error.strerror})"))

    for folder, names, files in os.walk(inputs.folders[start], onerror=unreadable):
        names[:] = sorted(name for name in names if skip is None or not _same(Path(folder) / name, skip))
        own = organs.is_folder(folder) and not inputs.folders[start].samefile(folder)
        for file in sorted(files):
            name = inputs.names(os.path.join(folder, file), start)
            if not images.is_image(file):
                yield name
            elif own and not file.startswith("sub-") and not labelmaps.is_plain(file):
                walked.organ_candidates.append(name)
            elif labelmaps.is_label(file):
                walked.labels.append(name)
            elif "derivatives" in PurePath(name).parts and file.startswith("sub-"):
                walked.problems.append((name, "derivative of a BIDS data set"))
            else:
                walked.images.append(name)


def _same(path: Path, other: Path) -> bool:
    return other.exists() and path.exists() and path.samefile(other)


def _chunks(names: Iterator[str], inputs: Inputs) -> Iterator[tuple[Inputs, list[str]]]:
    chunk: list[str] = []
    for name in names:
        chunk.append(name)
        if len(chunk) == _CHUNK:
            yield inputs, chunk
            chunk = []
    if chunk:
        yield inputs, chunk


def _read_headers(job: tuple[Inputs, list[str]]) -> list[headers.Header | str | None]:
    """Return for every file its header, the reason why it has none, or None if it is not DICOM."""
    inputs, names = job
    return [_read_header(inputs.path(name)) for name in names]


def _read_header(path: str) -> headers.Header | str | None:
    try:
        if not os.path.isfile(path):
            return "not a regular file" if os.path.lexists(path) else "vanished while it was read"
        if headers.is_dicom(path):
            return headers.read_header(path)
        return "not a DICOM file, although named .dcm" if path.lower().endswith(".dcm") else None
    except (RejectedSeries, UnreadableError) as error:
        return error.reason
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _sort(walked: Walked, names: list[str], read: Sequence[headers.Header | str | None]) -> None:
    for name, header in zip(names, read):
        if isinstance(header, str):
            walked.problems.append((name, header))
        elif header is None or header.kind == "directory":
            walked.others.append(name)
            walked.ignored += 1
        elif header.kind == "segmentation":
            walked.segmentations[header.refers].append(name)
        else:
            _sort_image(walked, name, header)


def _sort_image(walked: Walked, name: str, header: headers.Header) -> None:
    owner = header.patient, header.study
    series = header.series or "\0".join((NO_UID, os.path.dirname(name), *owner))
    # two patients may share a SeriesInstanceUID, after anonymisation above all: then each has a series
    if walked.owners.setdefault(series, owner) != owner:
        series = "\0".join((series, *owner))
        walked.owners[series] = owner
    walked.series[series].append(name)
