"""The files below the input folders by kind: images by their ending, DICOM by content, and what cannot be opened."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from data_prep.config import PrepConfig
from data_prep.dicom import headers
from data_prep.discovery import labelmaps, organs
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.studies import NO_UID
from data_prep.discovery.tree import Tree
from data_prep.volumes import images, pictures, slides, zips
from data_prep.volumes.errors import UnreadableError
from data_prep.volumes.volume import RejectedSeries
from data_prep.workers import LostJob, Workers

_CHUNK = 128  # files whose headers one job reads
_NOT_DICOM = {
    ".dcm": "not a DICOM file, although named .dcm",
    ".dcm.gz": "not a DICOM file, or damaged, although named .dcm.gz",
}


@dataclass
class Walked:
    """Files by kind, by their names (`Inputs`).

    persons  PatientID → birth dates and sexes in its headers
    by_id    whether a PatientID names the patient; else all are as if they were empty
    notes    lines about links and archives, for the console
    zips     zip archives that are read as folders
    """

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    organ_candidates: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    series: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)
    modalities: dict[str, str] = field(default_factory=dict)  # of series, by their first file
    segmentations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[str] = field(default_factory=list)
    ignored: int = 0
    persons: dict[str, tuple[set[str], set[str]]] = field(default_factory=lambda: defaultdict(lambda: (set(), set())))
    by_id: bool = True
    notes: list[str] = field(default_factory=list)
    zips: list[str] = field(default_factory=list)

    def part(self, patient_of: Callable[[str], str]) -> None:
        """Part series without a PatientID whose folders are of several patients by their paths."""
        for uid in [uid for uid, (patient, _) in self.owners.items() if not patient]:
            by_folder: dict[str, list[str]] = defaultdict(list)
            for name in self.series[uid]:
                by_folder[os.path.dirname(name)].append(name)
            own: dict[str, list[str]] = defaultdict(list)
            for names in by_folder.values():
                own[patient_of(min(names))] += names
            for patient in sorted(own)[1:]:
                again = "\0".join((uid, patient))
                self.series[again], self.owners[again] = own[patient], self.owners[uid]
            if len(own) > 1:
                self.series[uid] = own[min(own)]


def walk(inputs: Inputs, workers: Workers, config: PrepConfig, skip: Path | None) -> Walked:
    """Return what lies below the inputs, except in `skip` (the output), linked folders and zip archives included."""
    walked, tree = Walked(by_id=config.patient_id == "header"), Tree(inputs, skip)
    _read(walked, workers, _chunks(_Files(inputs, walked).others(tree), inputs))
    walked.problems += tree.problems
    walked.notes += tree.links.said()
    walked.zips += tree.zips
    _read(walked, workers, _in_zips(inputs, walked, workers, config))
    return walked


def _read(walked: Walked, workers: Workers, chunks: Iterable[tuple[Inputs, list[str]]]) -> None:
    for chunk, result in workers.map(_read_headers, chunks):
        if isinstance(result, LostJob):  # one of them is to blame: read each by itself
            for single, alone in workers.map(_read_headers, [(chunk[0], [name]) for name in chunk[1]]):
                _sort(walked, single[1], [str(alone)] if isinstance(alone, LostJob) else alone)
        else:
            _sort(walked, chunk[1], result)


class _Files:
    """Sorts files by their names; image files that are one by two hard links are read once."""

    def __init__(self, inputs: Inputs, walked: Walked) -> None:
        self.inputs, self.walked = inputs, walked
        self._numbers: dict[int, str] = {}  # of image files: inode → path

    def others(self, tree: Tree) -> Iterator[str]:
        """Yield files that may be DICOM; sort the others into `walked` on the way."""
        second = 0
        for folder in tree.folders():
            prefix = f"{folder.name}{os.sep}" if folder.name else ""
            own = not folder.top and organs.is_folder(folder.path)
            for entry in folder.files:
                kind = _kind(entry.name, own)
                if kind in ("image", "other") and (folder.linked and tree.read_before(entry)):
                    continue
                picture = kind == "image" or (
                    kind == "other" and (pictures.is_picture(entry.name) or slides.is_slide(entry.name))
                )
                if picture and not folder.linked and self._is_second(entry):
                    second += 1
                elif kind == "image" and not (folder.linked or entry.is_file(follow_symlinks=False)):
                    self.walked.problems.append((prefix + entry.name, "not a regular file"))
                elif _sort_name(self.walked, prefix + entry.name, kind):
                    yield prefix + entry.name
        if second:
            what = "1 image file is another" if second == 1 else f"{second} image files are others"
            self.walked.notes.append(f"{what} by a second name (hard links): read once")

    def _is_second(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an image file has another name under which it is read; inodes alone may be made up."""
        first = self._numbers.setdefault(entry.inode(), entry.path)
        if first == entry.path:
            return False
        try:
            status = os.stat(entry.path)
            return status.st_nlink > 1 and os.path.samestat(status, os.stat(first))
        except OSError:
            return False


def _kind(file: str, own: bool) -> str:
    """Return what a file's name says that it is. `own`: its folder is named as one of label maps."""
    if not images.is_image(file):
        return "other"
    if own and not file.startswith("sub-") and not labelmaps.is_plain(file):
        return "organ"
    return "label" if labelmaps.is_label(file) else "image"


def _sort_name(walked: Walked, name: str, kind: str) -> bool:
    """Sort a file into `walked` by its name; return whether it is left to be opened, because it may be DICOM."""
    if kind == "organ":
        walked.organ_candidates.append(name)
    elif kind == "label":
        walked.labels.append(name)
    elif kind == "image" and "derivatives" in PurePath(name).parts and os.path.basename(name).startswith("sub-"):
        walked.problems.append((name, "derivative of a BIDS data set"))
    elif kind == "image":
        walked.images.append(name)
    elif zips.is_archive(name):
        walked.zips.append(name)
    elif ending := zips.other_archive(name):
        walked.problems.append((name, f"a {ending} archive, which is not read (zip archives are); unpack it"))
    else:
        return True
    return False


def _in_zips(
    inputs: Inputs, walked: Walked, workers: Workers, config: PrepConfig
) -> Iterator[tuple[Inputs, list[str]]]:
    """Yield chunks of members that may be DICOM, none of two archives; sort the others into `walked` on the way."""
    unpacked = read = 0
    jobs = [(inputs.path(name).rstrip(os.sep), config.limits.zip_gb) for name in sorted(walked.zips)]
    for name, (_, listing) in zip(sorted(walked.zips), workers.map(_list, jobs)):
        if isinstance(listing, (str, LostJob)):
            walked.problems.append((name or ".", str(listing)))
        elif name not in inputs.folders and _is_unpacked(inputs.path(name), listing):
            unpacked += 1
        else:
            read += 1
            if listing.problem:
                walked.problems.append((name or ".", listing.problem))
            walked.ignored += listing.ignored
            yield from _chunks(_members(walked, name, listing), inputs)
    if read:
        walked.notes.append(f"{read} zip archive{'s' * (read > 1)} read like folders")
    if unpacked:
        walked.notes.append(f"{unpacked} zip archives left out: what was unpacked from them lies beside them")


def _list(job: tuple[str, float]) -> zips.Listing | str:
    """Return the members of a zip archive, or why it cannot be read."""
    try:
        return zips.listing(*job)
    except (RejectedSeries, UnreadableError) as error:
        return error.reason
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _members(walked: Walked, archive: str, listing: zips.Listing) -> Iterator[str]:
    for member in listing.members:
        folder, _, file = member.rpartition("/")
        name = os.path.join(archive, member)
        if _sort_name(walked, name, _kind(file, bool(folder) and organs.is_folder(folder))):
            yield name


def _is_unpacked(path: str, listing: zips.Listing) -> bool:
    """Return whether all members of an archive lie beside it, or in a folder of its name, with the same sizes."""

    def holds(folder: str) -> bool:
        pairs = zip(listing.members, listing.sizes)
        return all(_size(os.path.join(folder, member)) == size for member, size in pairs)

    return bool(listing.members) and (holds(os.path.splitext(path)[0]) or holds(os.path.dirname(path)))


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


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
        if zips.split(path) is None and not os.path.isfile(path):
            return "not a regular file" if os.path.lexists(path) else "vanished while it was read"
        if header := headers.read_if_dicom(path):
            return header
        return next((why for ending, why in _NOT_DICOM.items() if path.lower().endswith(ending)), None)
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
    owner = header.patient if walked.by_id else "", header.study
    if owner[0]:
        for known, value in zip(walked.persons[owner[0]], header.person):
            known.update({value} - {""})
    series = header.series or "\0".join((NO_UID, os.path.dirname(name), *owner))
    # two patients may share a SeriesInstanceUID, after anonymisation above all: then each has a series
    if walked.owners.setdefault(series, owner) != owner:
        series = "\0".join((series, *owner))
        walked.owners[series] = owner
    walked.modalities.setdefault(series, header.modality)
    walked.series[series].append(name)
