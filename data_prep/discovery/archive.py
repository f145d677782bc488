"""The sources below the input folder, one per job: a CT series, or the MR series of one study.

Image files are recognised by their ending, DICOM by its content. Nothing is skipped silently: what cannot be opened
becomes a Source with a `problem`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from data_prep.config import MriConfig, PrepConfig
from data_prep.discovery import alike, doubts, labelmaps, organs, patients, studies, walk
from data_prep.discovery.inputs import Inputs, fingerprint
from data_prep.discovery.labelmaps import LabelFile
from data_prep.discovery.layouts import applied, recognise
from data_prep.discovery.layouts.applied import Image
from data_prep.discovery.layouts.rules import COMMANDS
from data_prep.discovery.pairing import Pairing
from data_prep.discovery.patients import BIDS, Rule
from data_prep.discovery.studies import Series
from data_prep.volumes import nifti, zips
from data_prep.volumes.volume import RejectedSeries
from data_prep.workers import Workers


@dataclass(frozen=True)
class Source:
    """One job. `patient` and `study` are never stored.

    fingerprint  SHA-256 over names, sizes and times of all its files: it changes with the input
    labels       label maps that may belong to it
    problem      why it cannot be read, if discovery found that already; else ""
    layout       the layout whose rules name its patient; else ""
    split        train, val or test where the data say so, else ""
    classes      (column, class) where the data say so
    """

    series: tuple[Series, ...]
    patient: str
    study: str
    fingerprint: str = ""
    labels: tuple[LabelFile, ...] = ()
    problem: str = ""
    layout: str = ""
    split: str = ""
    classes: tuple[tuple[str, str], ...] = ()

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
    labels       label value → name, as recognised layouts or a description in the masks say
    patients     how paths name patients, and how many patients they name
    across       those of them whose images lie in several of the folders that are passed over (train, test)
    layouts      what was recognised, for `dataset.json`
    lines        what was decided about links, archives, layouts and patients without an id, for the console
    warnings     doubts about the layout and about who is a patient
    """

    sources: list[Source]
    ignored: int
    organ_files: organs.OrganFiles
    mapped: tuple[int, int]
    shared: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    patients: tuple[Rule, int] = (Rule("auto"), 0)
    across: int = 0
    layouts: list[dict[str, object]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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

    Raises LayoutError for a layout that does not fit or contradicts another.
    """
    recognise.candidates(config.layout, COMMANDS[modality])  # a slip is said before a long walk
    walked = walk.walk(inputs, workers, config, skip)
    return _Archive(inputs, masks, config, modality, walked).discovered()


class _Archive:
    """Turns files into sources: gives images their patients, groups series into studies, pairs them with label maps."""

    def __init__(
        self, inputs: Inputs, masks: Sequence[Path], config: PrepConfig, modality: str, walked: walk.Walked
    ) -> None:
        self.inputs, self.modality, self.walked = inputs, modality, walked
        self.layouts = applied.apply(inputs, masks, config, modality, walked)
        self.config = replace(config, labels={**self.layouts.labels, **config.labels})
        self.pairing = Pairing(inputs, masks, self.config, walked, self.layouts.found, self.layouts.problems)
        self.rule = self._rule(self._by_path())
        if config.patient_from in ("auto", "first_folder") or config.patient or not walked.by_id:
            walked.part(self._patient)
        self.by_path = self._by_path()

    def discovered(self) -> Discovered:
        """Return all sources, sorted by name, and what else was found."""
        groups = self._groups()
        known = self.layouts.images
        of_layouts = self._layout_groups([image for image in known if not image.problem])
        self.pairing.number_organs([*groups, *of_layouts])
        sources = [self._source(group) for group in groups]
        sources += [self._source(group, self._layout_of(group.series[0].name)) for group in of_layouts]
        mapped = sum(any(not label.problem for label in source.labels) for source in sources), len(sources)
        holders: dict[str, set[str]] = defaultdict(set)
        for group in [*groups, *of_layouts]:
            holders[group.patient].update(series.name.partition(os.sep)[0] for series in group.series)
        shared = 0 if "" in self.inputs.folders else sum(len(each) > 1 for each in holders.values())
        for image in known:
            if image.problem:
                self.pairing.pass_over(image.name)
                sources.append(self._problem(image.name, image.problem))
        by_path = [name for name in self.by_path if self.config.patient or not BIDS.search(name)]
        named = {self._patient(name) for name in by_path if not self.rule.misses(self._below(name))}
        who = self._named([*groups, *of_layouts])
        without = sum(not (one.by_id or one.trusted) for one, group in zip(who, groups) if group.series[0].dicom)
        lines = [*self.walked.notes, *self.layouts.lines()]
        if without and self.walked.by_id:
            lines.append(f"{without} DICOM series or studies have no PatientID: their paths name the patients")
        return Discovered(
            sources=self._with_problems(sources),
            ignored=self.walked.ignored,
            organ_files=self.pairing.organ_files,
            mapped=mapped,
            shared=shared,
            labels=self.layouts.labels,
            patients=(self.rule, len(named)),
            across=self._across(),
            layouts=self.layouts.summaries(),
            lines=lines,
            warnings=[
                *self.layouts.found.doubts,
                *self._borrowed_names(sources),
                *alike.warnings(self.rule, map(self._below, by_path)),
                *self._alike_ids(groups, by_path),
                *doubts.warnings(who, self.walked.persons, self.config),
            ],
        )

    def _borrowed_names(self, sources: Sequence[Source]) -> list[str]:
        """Return a line if label maps without a layout get the names that one gives its own values."""
        names = set(self.layouts.labels) - set(self.layouts.named)
        maps = sum(any(not label.organs for label in source.labels) and not source.layout for source in sources)
        if not names or not maps or not self.layouts.found.roots or self.pairing.masks:
            return []
        value = min(names, key=int)
        return [
            f"{maps} label maps lie outside of the layouts, and their values get the names of those (label {value} is "
            f"{self.layouts.labels[value]}); labels.{value}=NAME names them, sharding by themselves keeps them apart"
        ]

    def _named(self, groups: Sequence[studies.Group]) -> list[doubts.Named]:
        """Return what names the patients of groups."""
        by_id = [group.series[0].dicom and bool(self._id(group.series[0].uid)) for group in groups]
        # as patient_id=path would have it
        rule = self._rule([group.series[0].files[0] for group, own in zip(groups, by_id) if own])
        alone = [names[0] for names in rule.skipped if len(names) == 1 and not patients.is_word(names[0])]
        named = []
        for group, own in zip(groups, by_id):
            first = group.series[0].files[0]
            place = rule.of(self._below(first)) if own else group.patient
            trusted = not own and bool(self.config.patient or BIDS.search(first) or self.layouts.patient_of(first))
            named.append(doubts.Named(group.patient, place, alone[-1] if alone else place, group.study, own, trusted))
        return named

    def _alike_ids(self, groups: Sequence[studies.Group], by_path: Iterable[str]) -> list[str]:
        """Return doubts about PatientIDs that are alike, and about folders with patients by id and by path."""
        dicoms = [group.series[0] for group in groups if group.series[0].dicom and self._id(group.series[0].uid)]
        ids = {self._id(series.uid) for series in dicoms}
        places = ((self._below(series.files[0]), self._id(series.uid)) for series in dicoms)
        return [*alike.of_ids(ids), *alike.beside_ids(self.rule, map(self._below, by_path), places)]

    def _by_path(self) -> list[str]:
        """Return a file of each image and series whose patient its path names, or of each folder of the series."""
        files = [own for uid, own in self.walked.series.items() if not self._owner(uid)]
        singles = [*self.walked.images, *self.layouts.unnamed]
        if self.walked.by_id:
            return [*singles, *(own[0] for own in files)]
        by_folder = [{os.path.dirname(name): name for name in sorted(own, reverse=True)} for own in files]
        return [*singles, *(name for folders in by_folder for name in folders.values())]

    def _rule(self, names: Iterable[str]) -> Rule:
        config = self.config
        return patients.rule(map(self._below, names), config.patient_from, self._study_folders(), config.patient)

    def _id(self, uid: str) -> str:
        """Return the PatientID of a DICOM series; "" if it has none, or if the paths are to be taken."""
        return self.walked.owners[uid][0]

    def _with_problems(self, sources: list[Source]) -> list[Source]:
        for name, problem in [*self.walked.problems, *self.layouts.left_out()]:
            sources.append(self._problem(name, problem))
        paired = self.pairing.paired
        for name in [*self.walked.labels, *self.layouts.label_maps()]:
            if name not in paired:
                sources.append(self._problem(name, f"label map {self.pairing.unpaired(name)}"))
        for holder, files in self.pairing.organ_files.folders.items():
            if holder not in paired:
                place = os.path.dirname(files[0])
                sources.append(
                    self._problem(place, f"{len(files)} organ files {self.pairing.unpaired(holder, 'their own')}")
                )
        for refers, names in self.walked.segmentations.items():
            reason = "one of several" if refers in self.walked.series else "segmentation of images that are not here"
            sources += [self._problem(name, reason) for name in names if name not in paired]
        return sorted(sources, key=lambda source: (source.name, source.series[0].uid))

    def _groups(self) -> list[studies.Group]:
        singles = [self._image(name) for name in self.walked.images]
        dicoms = [self._dicom(uid, files) for uid, files in self.walked.series.items()]
        if self.modality == "CT":
            return [studies.Group(item.patient, item.study, [item.series]) for item in singles + dicoms]
        assert isinstance(self.config, MriConfig)
        return studies.group(singles, dicoms, self.config)

    def _layout_groups(self, images: Iterable[Image]) -> list[studies.Group]:
        """Return the images of layouts, for CT each by itself, for MR by study."""
        if self.modality == "CT":
            return [studies.Group(self._patient(one.name), one.study, list(one.series)) for one in images]
        grouped: dict[tuple[str, str], list[Series]] = defaultdict(list)
        for image in images:
            grouped[self._patient(image.name), image.study] += image.series
        return [studies.Group(patient, study, series) for (patient, study), series in grouped.items()]

    def _layout_of(self, name: str) -> str:
        return self.layouts.found.files[name].root.layout.name

    def _image(self, name: str) -> studies.Item:
        return studies.Item(Series(name, (name,), dicom=False, uid=name), self._patient(name), study="")

    def _below(self, name: str) -> PurePath:
        below = self.inputs.below(name)
        return below if below.parts else PurePath("input")

    def _patient(self, name: str) -> str:
        layout = "" if self.config.patient else self.layouts.patient_of(name)
        return layout or self.rule.of(self._below(name))

    def _owner(self, uid: str) -> str:
        """Return the patient of a DICOM series, if its header or a layout names it; else ""."""
        layout = "" if self.config.patient else self.layouts.patient_of(self.walked.series[uid][0])
        return self._id(uid) or layout

    def _across(self) -> int:
        """Return how many patients have images in several of the folders that say nothing of patients."""
        depth = len(self.rule.skipped)
        above: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for name in self.by_path if depth else ():
            if not BIDS.search(name):
                above[self._patient(name)].add(self._below(name).parts[:-1][:depth])
        return sum(len(folders) > 1 for folders in above.values())

    def _study_folders(self) -> set[str]:
        """Return the folders, below their inputs, whose image files are one MR study by the sequences they name."""
        if not isinstance(self.config, MriConfig):
            return set()
        by_folder: dict[str, list[str]] = defaultdict(list)
        for name in self.walked.images:
            by_folder[os.path.dirname(name)].append(name)
        named = {folder: studies.named_sequences(names, self.config) for folder, names in by_folder.items()}
        one = [folder for folder, own in named.items() if len(own) > 1 and len(set(own)) == len(own)]
        if self.config.study_from == "folder":
            one = list(by_folder)
        return {str(self._below(os.path.join(folder, "a")).parent) for folder in one}

    def _dicom(self, uid: str, files: list[str]) -> studies.Item:
        files.sort()
        folders = {os.path.dirname(file) for file in files}
        # a folder that holds one series only names it
        whole = len(folders) == 1 and self.pairing.series_in[next(iter(folders))] == 1
        name = next(iter(folders)) if whole else files[0]
        patient, study = self.walked.owners[uid]
        patient = patient or self._patient(files[0])
        return studies.Item(Series(name or ".", tuple(files), dicom=True, uid=uid), patient, study)

    def _source(self, group: studies.Group, layout: str = "") -> Source:
        labels: tuple[LabelFile, ...] = ()
        problem = ""
        try:
            labels = tuple(self.pairing.of(group.series))
        except RejectedSeries as error:
            problem = error.reason
        files = [file for series in group.series for file in series.files]
        by_id = group.series[0].dicom and self._id(group.series[0].uid)
        if not by_id and any(self.rule.misses(self._below(file)) for file in files):
            problem = patients.MISSED
        return Source(
            series=tuple(group.series),
            patient=group.patient,
            study=group.study,
            fingerprint=self._fingerprint(files, labels, self._said_by(layout, group) if layout else ""),
            labels=labels,
            problem=problem,
            layout=layout,
        )

    def _said_by(self, layout: str, group: studies.Group) -> str:
        """Return what rules and description decide about an image, for its fingerprint."""
        series = [(one.sequence, one.channel, one.orientation) for one in group.series]
        return repr((layout, series, sorted(labelmaps.ignored(self.config))))

    def _problem(self, name: str, problem: str) -> Source:
        there = [name] if zips.exists(self.inputs.path(name)) else []
        series = Series(name, tuple(there), dicom=False, uid=name)
        return Source((series,), self._patient(name), study=name, fingerprint=self._fingerprint(there), problem=problem)

    def _fingerprint(self, files: list[str], labels: Iterable[LabelFile] = (), said: str = "") -> str:
        more, named = said, [(name, self.inputs.path(name)) for name in files]
        for label in labels:
            for path in label.files:
                named.append((os.path.relpath(path, next(iter(self.inputs.folders.values()))), path))
            more += repr([value for _, value in label.organs]) if label.organs else ""
            more += label.problem
        named += [(f"{name}, header", str(beside)) for name, path in named if (beside := nifti.header_file(path))]
        return fingerprint(named, more.encode())
