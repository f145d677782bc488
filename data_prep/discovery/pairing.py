"""The label maps of series and studies: named by the user, laid out like the images, or lying beside them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from data_prep.config import PrepConfig
from data_prep.discovery import labelmaps, organs
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.labelmaps import LabelFile
from data_prep.discovery.layouts.recognise import Recognised
from data_prep.discovery.studies import Group, Series
from data_prep.discovery.walk import Walked
from data_prep.volumes import zips
from data_prep.volumes.volume import RejectedSeries


class Pairing:
    """The label maps of an input, by the images that they belong to.

    organ_files  label maps with a file per organ
    series_in    how many DICOM series lie in each folder
    paired       names of the label maps, and of the holders of organ files, that belong to an image
    passed       the same of images that are left out
    """

    def __init__(
        self,
        inputs: Inputs,
        masks: Sequence[Path],
        config: PrepConfig,
        walked: Walked,
        found: Recognised,
        problems: Mapping[str, str],
    ) -> None:
        """`walked` is sorted anew: organ candidates that are none become images or label maps.

        found     what the layouts below the inputs know; their files are no longer in `walked`
        problems  start of a layout's root → why its label maps cannot be used
        """
        self.inputs, self.masks, self.config, self.found = inputs, masks, config, found
        self._problems = problems
        self._segmentations, self._series = walked.segmentations, walked.series
        self.series_in = Counter(
            folder for files in walked.series.values() for folder in {os.path.dirname(file) for file in files}
        )
        self.paired: set[str] = set()
        self.passed: set[str] = set()
        self._sure: set[str] = set()  # holders of organ files that the masks or a layout give them
        self.organ_files = self._collected(walked)
        self._labels: dict[str, list[str]] = defaultdict(list)
        for name in walked.labels:
            self._labels[os.path.dirname(name)].append(name)
        self._neighbours = Counter(os.path.dirname(name) for name in walked.images)
        self._by_session: dict[str, list[str]] = defaultdict(list)
        for name in walked.labels:
            if os.path.basename(name).startswith("sub-"):
                self._by_session[labelmaps.base(os.path.basename(name))].append(name)

    def _collected(self, walked: Walked) -> organs.OrganFiles:
        beside: dict[str, list[str]] = defaultdict(list)
        for name in walked.images:
            beside[os.path.dirname(name)].append(name)
        for folder in self.series_in:
            beside[folder].append(folder)
        collected = organs.collect(walked.organ_candidates, beside)
        for name in set(walked.organ_candidates).difference(*collected.folders.values()):
            (walked.labels if labelmaps.is_label(name) else walked.images).append(name)
        walked.labels.sort()
        walked.images.sort()
        for name, known in self.found.files.items():
            if known.entry.organs and (files := self.found.organs_of(name)):
                collected.folders[name] = sorted(files)
                collected.organs |= files
                self._sure.add(name)
        return collected

    def number_organs(self, groups: Sequence[Group]) -> None:
        """Find the organ files in the masks, and give the organs of all images their values."""
        if self.masks:
            self.organ_files.folders.clear()
        holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for group in groups:
            for masks in self.masks:
                if not self._in_tree(masks, group.series):
                    name = group.series[0].name
                    if files := organs.in_tree(self.inputs.below(name), masks):
                        holders[tuple(files)].append(name)
        for shared, names in holders.items():
            if len(names) == 1:  # files of a folder that several images share belong to none of them
                self.organ_files.folders[names[0]] = list(shared)
                self._sure.add(names[0])
        self.organ_files.number(self.config)

    def of(self, group: list[Series]) -> list[LabelFile]:
        """Return the label maps that may belong to a series or study, by the strongest evidence that names any.

        Raises RejectedSeries if the user named one that is not there.
        """
        if given := [label for series in group if (label := self._given(series))]:
            return given[:1]
        if self.masks:
            return [label for masks in self.masks for label in self._in_tree(masks, group)[:1]] or self._organs(
                group[0].name
            )
        if known := [series.name for series in group if self.found.is_image(series.name)]:
            return self._of_layout(known)
        segmentations = [name for series in group for name in self._segmentations.get(series.uid, ())]
        if segmentations:
            return self._pair(segmentations, certain=True, dicom=True)
        folders = {series.name if series.dicom else os.path.dirname(series.name) for series in group}
        beside = [name for folder in sorted(folders) for name in self._labels.get(folder, ())]
        if plain := [name for name in beside if labelmaps.is_plain(os.path.basename(name))]:
            return self._pair(plain, certain=True)
        if own := [found for folder in sorted(folders) for found in self._organs_beside(folder, group)]:
            return own
        names = [os.path.basename(series.name) for series in group if not series.dicom]
        bases = {labelmaps.base(name) for name in names}
        sessions = {base for name, base in ((n, labelmaps.base(n)) for n in names) if name.startswith("sub-")}
        if fitting := [name for base in sorted(sessions) for name in self._by_session.get(base, ())]:
            return self._pair(fitting)
        if fitting := [name for name in beside if labelmaps.base(os.path.basename(name)) in bases]:
            return self._pair(fitting)
        alone = len(folders) == 1 and self._neighbours[next(iter(folders))] in (0, len(group))
        return self._pair(beside) if alone and len(beside) == 1 else []

    def _of_layout(self, names: Sequence[str]) -> list[LabelFile]:
        """Return the label maps that the rules of a layout name for images of one study."""
        files = dict.fromkeys(file for name in names for file in self.found.labels_of(name))
        labels = []
        for file in files:
            known = self.found.files[file] if file in self.found.files else self.found.files[names[0]]
            problem = self._problems.get(known.root.start, "")
            path = self.inputs.path(file)
            labels.append(LabelFile(path, certain=True, problem=problem, orientation=known.entry.orientation))
        self.paired.update(files)
        return labels or next(filter(None, map(self._organs, names)), [])

    def pass_over(self, name: str) -> None:
        """Note that the label maps of an image that is left out are not without one."""
        self.passed.update(self.found.labels_of(name))
        self.passed.add(name)

    def unpaired(self, name: str, own: str = "its own") -> str:
        """Return why a label map, or organ files by their holder, are not used."""
        return "of an image that is left out" if name in self.passed else f"without an image of {own}"

    def _given(self, series: Series) -> LabelFile | None:
        for pattern, target in self.config.label_maps.items():
            if fnmatch(series.name, pattern):
                there = [path for base in self._bases() if zips.is_file(path := base / target)]
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

    def _organs_beside(self, folder: str, group: list[Series]) -> list[LabelFile]:
        """Return the organ files of a folder as one label map, if all images there are `group`."""
        own = "" if folder == "." else folder
        return self._organs(own) if self._neighbours[own] + self.series_in[own] == len(group) else []

    def _organs(self, holder: str) -> list[LabelFile]:
        files = self.organ_files.folders.get(holder)
        if not files:
            return []
        self.paired.add(holder)
        values = tuple((self._path(name), self.organ_files.value_of(name)) for name in files)
        return [LabelFile(os.path.dirname(values[0][0]), certain=holder in self._sure, organs=values)]

    def _path(self, name: str) -> str:
        return name if os.path.isabs(name) else self.inputs.path(name)

    def _pair(self, names: list[str], certain: bool = False, dicom: bool = False) -> list[LabelFile]:
        self.paired.update(names)
        return [LabelFile(self.inputs.path(name), certain, dicom) for name in names]
