"""Layouts applied to the files of an input: images get patient, study and sequence, label maps get names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from data_prep.config import PrepConfig
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.layouts import described, recognise
from data_prep.discovery.layouts.described import Description
from data_prep.discovery.layouts.recognise import Known, Recognised, Root
from data_prep.discovery.layouts.rules import COMMANDS, Layout, LayoutError
from data_prep.discovery.patients import BIDS
from data_prep.discovery.studies import Series
from data_prep.discovery.walk import Walked
from data_prep.volumes import zips

_OTHER = {"ct": "CT of this layout; shard_ct.py takes it", "mri": "MR of this layout; shard_mri.py takes it"}

_FORK = "resource fork of macOS, not an image"


@dataclass(frozen=True)
class Image:
    """An image file of a layout: as series, one or, of a file with channels, several.

    patient  "" if the path names it, as without a layout
    problem  why it is left out; else ""
    """

    name: str
    patient: str
    study: str
    series: tuple[Series, ...]
    problem: str = ""


@dataclass
class Applied:
    """Layouts as they are found below an input.

    labels    label value → name, as all of them say
    named     label value → name, as the user says
    problems  start of a root → why its label maps cannot be used
    lines     what the console says of them
    general   image files that their rules leave to the general ones
    unknown   how many image files below their roots no rule knows
    """

    found: Recognised
    modality: str
    named: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    descriptions: dict[Root, Description] = field(default_factory=dict)
    general: list[str] = field(default_factory=list)
    unknown: int = 0

    @cached_property
    def images(self) -> list[Image]:
        """All image files that a layout knows, sorted by name."""
        return [self._image(name, known) for name, known in self._with_role("image")]

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Yield name and reason of files that a layout leaves out."""
        for name, known in self._with_role("left out"):
            yield name, known.entry.reason

    def label_maps(self) -> list[str]:
        """Return the names of all label maps that a layout knows, without organ files."""
        return [name for name, _ in self._with_role("label map")]

    def patient_of(self, name: str) -> str:
        """Return the patient that a layout gives a file, DICOM ones as well; "" if it gives none."""
        known = self.found.known(name)
        return known.patient if known else ""

    def summaries(self) -> list[dict[str, object]]:
        """Return what was recognised, for `dataset.json`."""
        summaries = []
        for layout in {root.layout.name: root.layout for root in self.found.roots}.values():
            folders = sum(root.layout is layout for root in self.found.roots)
            used = [image for image in self.images if self._layout_of(image.name) is layout and not image.problem]
            general = [name for name in self.general if self._layout_of(name) is layout]
            maps = len({file for image in used for file in self.found.labels_of(image.name)})
            maps += sum(bool(self.found.organs_of(image.name)) for image in used)
            patients = {image.patient for image in used if image.patient}
            patients |= {found[1] for name in general if (found := BIDS.search(name))}
            summaries.append(
                {
                    **{"name": layout.name, "title": layout.title, "folders": folders},
                    "images": len(used) + len(general),
                    **({"patients": len(patients)} if patients else {}),
                    **({} if general else {"label_maps": maps}),
                    **({"note": layout.note} if layout.note else {}),
                }
            )
        return summaries

    @property
    def unnamed(self) -> list[str]:
        """The images whose patients their paths name as without a layout."""
        return [image.name for image in self.images if not image.patient]

    def _layout_of(self, name: str) -> Layout:
        return self.found.files[name].root.layout

    def lines(self) -> Iterator[str]:
        """Yield what the console says of the layouts."""
        for summary in self.summaries():
            layout = next(root.layout for root in self.found.roots if root.layout.name == summary["name"])
            shape = ", ".join(line[0].plain for line in layout.has)
            folders = f" in {summary['folders']} folders" if summary["folders"] != 1 else ""
            counts = ""
            if summary["images"]:
                patients = f" of {summary['patients']} patients" if "patients" in summary else ""
                counts = f": {summary['images']} images{patients}"
                counts += f", {summary['label_maps']} label maps" if "label_maps" in summary else ""
            yield f"layout: {layout.title} ({layout.name}) by {shape}{folders}{counts}"
            if layout.note:
                yield f"  {layout.note}"
        if self.unknown:
            yield f"  {self.unknown} image files there that its rules do not know are read as without a layout"

    def _with_role(self, role: str) -> list[tuple[str, Known]]:
        return sorted((name, known) for name, known in self.found.files.items() if known.entry.role == role)

    def _image(self, name: str, known: Known) -> Image:
        layout, entry = known.root.layout, known.entry
        description = self.descriptions.get(known.root, Description())
        files = (name, *self.found.beside(name))
        series = Series(name, files, dicom=False, uid=name, orientation=entry.orientation)
        problem = _OTHER[entry.only] if entry.only not in ("", COMMANDS[self.modality]) else ""
        if entry.channels and not problem:
            names = {place: self._sequence(layout.sequences, one) for place, one in description.channels.items()}
            problem = "" if names else f"{layout.described_by} does not name the channels of its fourth axis"
            channels = tuple(
                replace(series, uid=f"{name}\0channel {place}", sequence=sequence, channel=(place, len(names)))
                for place, sequence in sorted(names.items())
            )
            return Image(name, known.patient, known.study, channels or (series,), problem)
        if known.channel and not problem:
            problem = description.channel_problem(known.channel, self.modality)
            word = description.channel(known.channel) or known.channel
            series = replace(series, sequence=self._sequence(layout.sequences, word))
        return Image(name, known.patient, known.study, (series,), problem)

    def _sequence(self, names: Mapping[str, str], word: str) -> str:
        """Return the sequence that a layout or a description calls `word`; "" if that says none."""
        if self.modality == "CT":
            return ""
        plain = re.sub(r"[^a-z0-9]", "", word.lower())[:16]
        return names.get(word.lower()) or described.sequence_of(word) or (plain if plain[:1].isalpha() else "")


def apply(inputs: Inputs, masks: Sequence[Path], config: PrepConfig, modality: str, walked: Walked) -> Applied:
    """Return the layouts of an input, and take the files that they know out of `walked`.

    Raises LayoutError for a layout that was named and does not fit, a damaged description, and for label values that
    have different names in different folders.
    """
    _leave_out_forks(walked)
    images = [*walked.images, *walked.labels, *walked.organ_candidates]
    one_of_each = [files[0] for files in walked.series.values()]  # of flat folders the others look the same
    found = recognise.recognise(
        [*images, *walked.others, *one_of_each],
        images,
        several="" not in inputs.folders,
        setting=config.layout,
        command=COMMANDS[modality],
        exists=lambda name: zips.is_file(inputs.path(name)),
    )
    applied = Applied(found, modality, config.labels)
    for number, root in enumerate(found.roots, 1):
        if root.layout.described_by:
            which = f", folder {number} of {len(found.roots)}" if len(found.roots) > 1 else ""
            said = f"{root.layout.described_by} of {root.layout.title}{which}"
            description = described.read(Path(inputs.path(root.start + root.layout.described_by)), said)
            applied.descriptions[root] = description
            if problem := description.label_problem(config.labels):
                applied.problems[root.start] = problem
    if masks:
        applied.labels, applied.problems = _of_masks(masks, config)
    else:
        applied.labels = _labels(applied, config)
    _take_out(applied, walked)
    return applied


def _leave_out_forks(walked: Walked) -> None:
    """Take what macOS writes beside files, named ._ and their name, out of the images."""
    for names in (walked.images, walked.labels, walked.organ_candidates):
        forks = {name for name in names if os.path.basename(name).startswith("._")}
        walked.problems += [(name, _FORK) for name in sorted(forks)]
        names[:] = [name for name in names if name not in forks]


def _take_out(applied: Applied, walked: Walked) -> None:
    known = {name for name, one in applied.found.files.items() if one.entry.role != "general"}
    for names in (walked.images, walked.labels, walked.organ_candidates):
        names[:] = [name for name in names if name not in known]
        rest = [name for name in names if name not in applied.found.files]
        applied.unknown += sum(applied.found.root_of(name) is not None for name in rest)
    applied.general = [name for name in walked.images if name in applied.found.files]
    used = known | {root.start + root.layout.described_by for root in applied.found.roots if root.layout.described_by}
    walked.ignored -= sum(name in used for name in walked.others)


def _labels(applied: Applied, config: PrepConfig) -> dict[str, str]:
    """Return label value → name of all roots with label maps. Raises LayoutError if they disagree."""
    by_role = {(known.root, known.entry.role) for known in applied.found.files.values()}
    names: dict[str, str] = {}
    unnamed = False
    for root in applied.found.roots:
        if not {(root, "label map"), (root, "organ")} & by_role:
            continue
        mine = {**root.layout.labels, **applied.descriptions.get(root, Description()).labels}
        unnamed = unnamed or (not mine and (root, "label map") in by_role and root.start not in applied.problems)
        for value, name in mine.items():
            if names.setdefault(value, name) != name and value not in config.labels:
                raise LayoutError(
                    f"label {value} is {names[value]} in one folder and {name} in another; shard them one by one, or "
                    f"give it one name: labels.{value}=NAME"
                )
    if unnamed and (open_ := sorted(set(names) - set(config.labels), key=int)):
        raise LayoutError(
            f"label {open_[0]} is {names[open_[0]]} in one folder, another one's label maps have no names; shard them "
            f"one by one, or give it one name: labels.{open_[0]}=NAME"
        )
    return names


def _of_masks(masks: Sequence[Path], config: PrepConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Return label value → name as descriptions in or above the masks say, and why their maps cannot be used."""
    names: dict[str, str] = {}
    for folder in masks:
        places = [folder, folder.parent] if folder.name.startswith("labels") else [folder]
        there = [path for place in places if (path := place / "dataset.json").is_file()]
        description = described.read(there[0], "dataset.json of --masks") if there else Description()
        if problem := description.label_problem(config.labels):
            raise LayoutError(f"dataset.json of --masks: {problem}")
        for value, name in description.labels.items():
            if names.setdefault(value, name) != name and value not in config.labels:
                raise LayoutError(
                    f"label {value} is {names[value]} in one --masks and {name} in another; give it one name: "
                    f"labels.{value}=NAME"
                )
    return names, {}
