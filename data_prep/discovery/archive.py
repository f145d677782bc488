"""The sources below the input folder, one per job: a CT series, or the MR series of one study.

Image files are recognised by their ending, DICOM by its content. Nothing is skipped silently: what cannot be opened
becomes a Source with a `problem`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from data_prep.config import MriConfig, PrepConfig
from data_prep.discovery import labelmaps, organs, studies, walk
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.labelmaps import LabelFile
from data_prep.discovery.studies import Series
from data_prep.volumes.volume import RejectedSeries
from data_prep.workers import Workers


@dataclass(frozen=True)
class Source:
    """One job. `patient` and `study` are never stored.

    fingerprint  SHA-256 over names, sizes and times of all its files: it changes with the input
    labels       label maps that may belong to it
    problem      why it cannot be read, if discovery found that already; else ""
    """

    series: tuple[Series, ...]
    patient: str
    study: str
    fingerprint: str = ""
    labels: tuple[LabelFile, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The path of its first series, for the person at the console."""
        return self.series[0].name


@dataclass
class Discovered:
    """All sources, sorted by name, and the number of files that are not images.

    organ_files  label maps with a file per organ
    mapped       how many images or studies have a label map, and how many there are
    shared       patients that several --input folders name by their paths
    """

    sources: list[Source]
    ignored: int
    organ_files: organs.OrganFiles
    mapped: tuple[int, int]
    shared: int = 0


def discover(
    inputs: Inputs,
    masks: Sequence[Path],
    config: PrepConfig,
    modality: str,
    workers: Workers,
    skip: Path | None = None,
) -> Discovered:
    """Return every source of `modality` ("CT" or "MR") below the inputs, except in `skip` (the output).

    masks  trees of label maps laid out like the inputs
    """
    walked = walk.walk(inputs, workers, skip)
    return _Pairing(inputs, masks, config, modality, walked).discovered()


class _Pairing:
    """Turns files into sources: pairs label maps with images, groups series into studies."""

    def __init__(
        self, inputs: Inputs, masks: Sequence[Path], config: PrepConfig, modality: str, walked: walk.Walked
    ) -> None:
        self.inputs, self.masks, self.config, self.modality, self.walked = inputs, masks, config, modality, walked
        self.organ_files = self._organ_files()
        self.labels: dict[str, list[str]] = defaultdict(list)
        for name in walked.labels:
            self.labels[os.path.dirname(name)].append(name)
        self.neighbours = Counter(os.path.dirname(name) for name in walked.images)
        self.by_session: dict[str, list[str]] = defaultdict(list)
        for name in walked.labels:
            if os.path.basename(name).startswith("sub-"):
                self.by_session[labelmaps.base(os.path.basename(name))].append(name)
        self.paired: set[str] = set()

    def _organ_files(self) -> organs.OrganFiles:
        """Return the organ files; those of the candidates that are none become images or label maps again."""
        beside: dict[str, list[str]] = defaultdict(list)
        for name in self.walked.images:
            beside[os.path.dirname(name)].append(name)
        for folder in self._series_in:
            beside[folder].append(folder)
        found = organs.collect(self.walked.organ_candidates, beside, self.config)
        for name in set(self.walked.organ_candidates).difference(*found.folders.values()):
            (self.walked.labels if labelmaps.is_label(name) else self.walked.images).append(name)
        self.walked.labels.sort()
        self.walked.images.sort()
        return found

    def discovered(self) -> Discovered:
        """Return all sources, sorted by name, and what else was found."""
        groups = self._groups()
        sources = [self._source(group) for group in groups]
        mapped = sum(bool(source.labels) for source in sources), len(sources)
        holders: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            holders[group.patient].update(series.name.partition(os.sep)[0] for series in group.series)
        shared = 0 if "" in self.inputs.folders else sum(len(each) > 1 for each in holders.values())
        return Discovered(self._with_problems(sources), self.walked.ignored, self.organ_files, mapped, shared)

    def _with_problems(self, sources: list[Source]) -> list[Source]:
        for name, problem in self.walked.problems:
            sources.append(self._problem(name, problem))
        for name in self.walked.labels:
            if name not in self.paired:
                sources.append(self._problem(name, "label map without an image of its own"))
        for folder, files in self.organ_files.folders.items():
            if folder not in self.paired:
                place = os.path.dirname(files[0])
                sources.append(self._problem(place, f"{len(files)} organ files without an image of their own"))
        for refers, names in self.walked.segmentations.items():
            reason = "one of several" if refers in self.walked.series else "segmentation of images that are not here"
            sources += [self._problem(name, reason) for name in names if name not in self.paired]
        return sorted(sources, key=lambda source: (source.name, source.series[0].uid))

    def _groups(self) -> list[studies.Group]:
        singles = [self._image(name) for name in self.walked.images]
        dicoms = [self._dicom(uid, files) for uid, files in self.walked.series.items()]
        if self.modality == "CT":
            return [studies.Group(item.patient, item.study, [item.series]) for item in singles + dicoms]
        assert isinstance(self.config, MriConfig)
        return studies.group(singles, dicoms, self.config)

    def _image(self, name: str) -> studies.Item:
        return studies.Item(Series(name, (name,), dicom=False, uid=name), self._patient(name), study="")

    def _patient(self, name: str) -> str:
        below = self.inputs.below(name)
        return studies.patient_of(below if below.parts else PurePath("input"), self.config.patient_from)

    def _dicom(self, uid: str, files: list[str]) -> studies.Item:
        files.sort()
        folders = {os.path.dirname(file) for file in files}
        # a folder that holds one series only names it
        whole = len(folders) == 1 and self._series_in[next(iter(folders))] == 1
        name = next(iter(folders)) if whole else files[0]
        patient, study = self.walked.owners[uid]
        patient = patient or self._patient(files[0])
        return studies.Item(Series(name or ".", tuple(files), dicom=True, uid=uid), patient, study)

    @property
    def _series_in(self) -> Counter[str]:
        if not hasattr(self, "_counted"):
            self._counted = Counter(
                folder for files in self.walked.series.values() for folder in {os.path.dirname(file) for file in files}
            )
        return self._counted

    def _source(self, group: studies.Group) -> Source:
        labels: tuple[LabelFile, ...] = ()
        problem = ""
        try:
            labels = tuple(self._labels(group.series))
        except RejectedSeries as error:
            problem = error.reason
        files = [file for series in group.series for file in series.files]
        return Source(
            series=tuple(group.series),
            patient=group.patient,
            study=group.study,
            fingerprint=self._fingerprint(files, labels),
            labels=labels,
            problem=problem,
        )

    def _problem(self, name: str, problem: str) -> Source:
        there = [name] if os.path.isfile(self.inputs.path(name)) else []
        series = Series(name, tuple(there), dicom=False, uid=name)
        return Source((series,), self._patient(name), study=name, fingerprint=self._fingerprint(there), problem=problem)

    def _labels(self, group: list[Series]) -> list[LabelFile]:
        """Return the label maps that may belong to a series or study, by the strongest evidence that names any."""
        if given := [label for series in group if (label := self._given(series))]:
            return given[:1]
        if self.masks:
            return [label for masks in self.masks for label in self._in_tree(masks, group)[:1]]
        segmentations = [name for series in group for name in self.walked.segmentations.get(series.uid, ())]
        if segmentations:
            return self._pair(segmentations, certain=True, dicom=True)
        folders = {series.name if series.dicom else os.path.dirname(series.name) for series in group}
        beside = [name for folder in sorted(folders) for name in self.labels.get(folder, ())]
        if plain := [name for name in beside if labelmaps.is_plain(os.path.basename(name))]:
            return self._pair(plain, certain=True)
        if own := [found for folder in sorted(folders) for found in self._organs_of(folder, group)]:
            return own
        names = [os.path.basename(series.name) for series in group if not series.dicom]
        bases = {labelmaps.base(name) for name in names}
        sessions = {base for name, base in ((n, labelmaps.base(n)) for n in names) if name.startswith("sub-")}
        if fitting := [name for base in sorted(sessions) for name in self.by_session.get(base, ())]:
            return self._pair(fitting)
        if fitting := [name for name in beside if labelmaps.base(os.path.basename(name)) in bases]:
            return self._pair(fitting)
        alone = len(folders) == 1 and self.neighbours[next(iter(folders))] in (0, len(group))
        return self._pair(beside) if alone and len(beside) == 1 else []

    def _given(self, series: Series) -> LabelFile | None:
        for pattern, target in self.config.label_maps.items():
            if fnmatch(series.name, pattern):
                there = [path for base in self._bases() if os.path.isfile(path := base / target)]
                if len(there) != 1:
                    which = f"exists in {len(there)} folders" if there else "does not exist"
                    raise RejectedSeries(f"its label map, named by label_maps, {which}")
                self.paired.update(
                    target if start == "" else os.path.join(start, target) for start in self.inputs.folders
                )
                return LabelFile(str(there[0]), certain=True)
        return None

    def _bases(self) -> Sequence[Path]:
        return self.masks or list(self.inputs.folders.values())

    def _in_tree(self, masks: Path, group: list[Series]) -> list[LabelFile]:
        found = (labelmaps.in_tree(self.inputs.below(series.name), masks) for series in group)
        return [label for label in found if label]

    def _organs_of(self, folder: str, group: list[Series]) -> list[LabelFile]:
        """Return the organ files of a folder as one label map, if all images there are `group`."""
        own = "" if folder == "." else folder
        files = self.organ_files.folders.get(own)
        if not files or self.neighbours[own] + self._series_in[own] != len(group):
            return []
        self.paired.add(own)
        values = tuple((self.inputs.path(name), self.organ_files.value_of(name)) for name in files)
        return [LabelFile(self.inputs.path(os.path.dirname(files[0])), certain=False, organs=values)]

    def _pair(self, names: list[str], certain: bool = False, dicom: bool = False) -> list[LabelFile]:
        self.paired.update(names)
        return [LabelFile(self.inputs.path(name), certain, dicom) for name in names]

    def _fingerprint(self, files: list[str], labels: Iterable[LabelFile] = ()) -> str:
        digest = hashlib.sha256()
        named = [(name, self.inputs.path(name)) for name in files]
        for label in labels:
            for path in label.files:
                named.append((os.path.relpath(path, next(iter(self.inputs.folders.values()))), path))
            digest.update(repr([value for _, value in label.organs]).encode() if label.organs else b"")
        for name, path in named:
            try:
                status = os.stat(path)
                digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
            except OSError:
                digest.update(f"{name}\0gone\0".encode(errors="surrogateescape"))
        return digest.hexdigest()
