"""The sources of shard_images.py, one per picture, slide, radiograph or PET series; MedMNIST files: one per image.

What the data say themselves is taken: PatientID, the splits and labels of MedMNIST files, folders named train, val or
test (`split_from`). What a path may say is taken as configured: patients (`patient`, `patient_from`), classes
(`class_from`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path, PurePath

from data_prep.config import ImagesConfig, PrepConfig, TileConfig
from data_prep.discovery import doubts, labelmaps, organs, patients, walk
from data_prep.discovery.archive import Discovered, Source
from data_prep.discovery.inputs import Inputs, fingerprint
from data_prep.discovery.layouts import recognise
from data_prep.discovery.layouts.rules import COMMANDS
from data_prep.discovery.studies import Series
from data_prep.identity import SPLIT_NAMES
from data_prep.schema import SPLITS
from data_prep.volumes import medmnist, pictures, slides, video, zips
from data_prep.volumes.errors import UnreadableError
from data_prep.volumes.volume import RejectedSeries
from data_prep.workers import Workers
from meddap.errors import MeddapError
from meddap.settings import SettingsError

COLUMN = "class"  # of the labels that folders are
_SEQUENCE = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_TAKEN = ("ct", "pet", "seg", "json", "red", "green", "blue")
# settings of label maps, and of CT and MR
_NO_EFFECT = ("labels", "label_maps", "ignore", "label_grid", "max_labels_outside")
_SERIES = ("PT", "SM")  # modalities whose files are one source together: PET, slides with a file per resolution
_FEW = 20  # folders that look like classes if they hold so many pictures on average, and are as few


def discover(
    inputs: Inputs,
    masks: Sequence[Path],
    config: PrepConfig,
    modality: str,
    workers: Workers,
    skip: Path | None = None,
) -> Discovered:
    """Return every picture below the inputs as a source, sorted by name, except what lies in `skip` (the output).

    Raises SettingsError for a pattern that is none, LayoutError for a layout that does not fit, MeddapError for
    patients whom the data put into two splits.
    """
    assert isinstance(config, ImagesConfig)
    _check(config)
    recognise.candidates(config.layout, COMMANDS[modality])  # a slip is said before a long walk
    walked = walk.walk(inputs, workers, config, skip)
    anonymous = [files for uid, files in walked.series.items() if not walked.owners[uid][0]]
    names = [*filter(_is_picture, walked.others), *(name for files in anonymous for name in files)]
    layouts = recognise.recognise(
        walked.others,
        [name for name in walked.others if _is_picture(name)],
        several="" not in inputs.folders,
        setting=config.layout,
        command=COMMANDS[modality],
        exists=lambda name: zips.is_file(inputs.path(name)),
    )
    rule = patients.rule(map(inputs.below, names), config.patient_from, pattern=config.patient)
    found = _Finder(inputs, config, rule, layouts)
    drawings = _drawings(filter(_is_picture, walked.others), inputs, config)
    for name in sorted(walked.others):
        if name in drawings:
            found.refuse(name, "its name or folder says a mask or segmentation, not a picture; drawings=keep takes it")
        elif reason := found.refusal(name):
            found.refuse(name, reason)
        elif _is_picture(name):
            found.add(name, uid=name, files=(name, *slides.companions(name, walked.others)))
        elif name.lower().endswith(".npz"):
            found.add_arrays(name)
        else:
            found.ignored += 1
    for uid, files in walked.series.items():
        patient, study = walked.owners[uid]
        if walked.modalities[uid] in _SERIES:
            found.add(min(files), uid, patient, study, dicom=True, files=tuple(sorted(files)))
            continue
        for name in files:
            found.add(name, f"{uid}\0{name}", patient, study, dicom=True)
    volumes = "a volume; shard_ct.py or shard_mri.py takes it"
    for name in (*walked.images, *walked.labels, *walked.organ_candidates):
        found.refuse(name, volumes)
    for name, problem in walked.problems:
        found.refuse(name, problem)
    for names in walked.segmentations.values():
        for name in names:
            found.refuse(name, "a segmentation, not a picture")
    everything = found.discovered(walked.ignored - len(walked.others))
    everything.lines[:0] = walked.notes
    everything.warnings += layouts.doubts
    everything.warnings += doubts.warnings(_by_id(inputs, walked), walked.persons, config)
    return everything


def _is_picture(name: str) -> bool:
    return pictures.is_picture(name) or slides.is_slide(name) or video.is_video(name)


def _drawings(names: Iterable[str], inputs: Inputs, config: ImagesConfig) -> set[str]:
    """Return the pictures that are called masks; none if all are called so, or if they are to be kept."""
    every = list(names)
    drawn = {name for name in every if labelmaps.is_drawing(inputs.below(name))}
    return drawn if config.drawings == "refuse" and len(drawn) < len(every) else set()


def _by_id(inputs: Inputs, walked: walk.Walked) -> list[doubts.Named]:
    """Return the radiographs whose PatientID names the patient, with what their paths would name."""
    owned = [(*walked.owners[uid], name) for uid, files in walked.series.items() for name in files]
    mine = [(patient, study, inputs.below(name)) for patient, study, name in owned if patient]
    rule = patients.rule((below for *_, below in mine), "auto")
    places = [(patient, study, rule.of(below)) for patient, study, below in mine]
    return [doubts.Named(patient, place, place, study, by_id=True) for patient, study, place in places]


def _check(config: ImagesConfig) -> None:
    """Raise SettingsError for settings that do nothing for pictures, and for names of sequences that are others'."""
    for key in _NO_EFFECT:
        value, default = (attrgetter(key)(each) for each in (config, ImagesConfig()))
        if value != default:
            raise SettingsError(f"{key}: does nothing for pictures, radiographs and PET; leave it out")
    if not _SEQUENCE.fullmatch(config.sequence) or config.sequence in _TAKEN:
        raise SettingsError(
            f"sequence={config.sequence}: take up to 16 small letters, digits, _ or -, and none of {', '.join(_TAKEN)}"
        )
    if config.tiles.size is None and config.tiles != TileConfig():
        raise SettingsError("tiles: does nothing without tiles.size, the rows and columns of a tile; set it")
    if config.tiles.size is not None and config.tiles.overlap >= config.tiles.size:
        raise SettingsError(f"tiles.overlap={config.tiles.overlap}: has to be below tiles.size={config.tiles.size}")


class _Finder:
    """Collects sources with what their paths say."""

    def __init__(
        self, inputs: Inputs, config: ImagesConfig, rule: patients.Rule, layouts: recognise.Recognised
    ) -> None:
        self.inputs, self.config, self.rule, self.layouts, self.ignored = inputs, config, rule, layouts, 0
        self.named: set[str] = set()  # patients by their paths
        self.sources: list[Source] = []
        self.alone = self.unnamed = 0  # pictures that are their own patient, and those in no split's folder

    def add(
        self,
        name: str,
        uid: str,
        patient: str = "",
        study: str = "",
        *,
        dicom: bool = False,
        files: tuple[str, ...] = (),
    ) -> None:
        """Add a file, or all `files` of a series. `patient`, `study`: from its header, "" if it has none."""
        below = self.inputs.below(name)
        problem = layout = ""
        if not patient and not self.config.patient and self.layouts.is_image(name):
            patient, layout = self.layouts.files[name].patient, self.layouts.files[name].root.layout.name
        if not patient:
            patient, problem = self._patient(below)
        classes = ((COLUMN, below.parent.name),) if self.config.class_from == "folder" and below.parent.name else ()
        if self.config.class_from == "folder" and not classes:
            problem = problem or "lies in no folder, and class_from=folder takes that as its class"
        series = Series(name, files or (name,), dicom=dicom, uid=uid)
        study = study or str(below.with_suffix(""))
        split = self._split(below)
        print_ = self._fingerprint(list(series.files))
        source = Source((series,), patient, study, print_, problem=problem, split=split, classes=classes, layout=layout)
        self.sources.append(source)

    def add_arrays(self, name: str) -> None:
        """Add the images of a MedMNIST file, each a patient of its own: the file has no ids."""
        try:
            labels = medmnist.read_labels(self.inputs.path(name))
        except (RejectedSeries, UnreadableError) as error:
            self.refuse(name, error.reason)
            return
        print_ = self._fingerprint([name])
        columns = (
            [COLUMN] if labels[SPLITS[0]].shape[1] == 1 else [f"label {n}" for n in range(labels["train"].shape[1])]
        )
        given = self.config.split_from == "auto"
        for split in SPLITS:
            for number, row in enumerate(labels[split]):
                image = f"{name}#{split}-{number:06d}"
                classes = tuple((column, str(int(value))) for column, value in zip(columns, row))
                series = Series(image, (name,), dicom=False, uid=image)
                self.alone += 1
                self.sources.append(
                    Source((series,), image, image, print_, split=split if given else "", classes=classes)
                )

    def refusal(self, name: str) -> str:
        """Return why the layout of a file leaves it out; "" if it does not."""
        known = self.layouts.files.get(name)
        return known.entry.reason if known and known.entry.role == "left out" else ""

    def refuse(self, name: str, problem: str) -> None:
        """Add a file that is left out, with the reason."""
        there = [name] if zips.exists(self.inputs.path(name)) else []
        series = Series(name, tuple(there), dicom=False, uid=name)
        print_ = self._fingerprint(there)
        self.sources.append(Source((series,), str(self.inputs.below(name)), name, print_, problem=problem))

    def _fingerprint(self, names: list[str]) -> str:
        return fingerprint((name, self.inputs.path(name)) for name in names)

    def _patient(self, below: PurePath) -> tuple[str, str]:
        """Return the patient that a path names, and why it names none."""
        if self.rule.pattern:
            return self.rule.of(below), patients.MISSED if self.rule.misses(below) else ""
        if self.config.patient_from == "file" or len(below.parts) == 1:
            self.alone += 1
            return below.as_posix(), ""
        self.named.add(patient := self.rule.of(below))
        return patient, ""

    def _split(self, below: PurePath) -> str:
        """Return the split that the lowest folder named as one says; "" for none, or if none is asked for."""
        if self.config.split_from == "hash":
            return ""
        named = [SPLIT_NAMES[part.lower()] for part in below.parts[:-1] if part.lower() in SPLIT_NAMES]
        self.unnamed += not named
        return named[-1] if named else ""

    def discovered(self, ignored: int) -> Discovered:
        """Return all sources and what is to be said of them."""
        used = [source for source in self.sources if not source.problem]
        self._check_splits(used)
        self.sources.sort(key=lambda source: (source.name, source.series[0].uid))
        return Discovered(
            self.sources,
            self.ignored + ignored,
            organs.OrganFiles(),
            (0, 0),
            patients=(self.rule, len(self.named)),
            layouts=self._summaries(used),
            lines=list(self._lines(used)),
        )

    def _summaries(self, used: list[Source]) -> list[dict[str, object]]:
        """Return the layouts that name patients, for `dataset.json`."""
        summaries = []
        for layout in {root.layout.name: root.layout for root in self.layouts.roots}.values():
            mine = [source for source in used if source.layout == layout.name]
            folders = sum(root.layout is layout for root in self.layouts.roots)
            summary: dict[str, object] = {"name": layout.name, "title": layout.title, "folders": folders}
            summary |= {"images": len(mine), "patients": len({source.patient for source in mine})}
            summaries.append({**summary, **({"note": layout.note} if layout.note else {})})
        return summaries

    def _check_splits(self, used: list[Source]) -> None:
        splits: dict[str, set[str]] = defaultdict(set)
        for source in used:
            splits[source.patient].add(source.split)
        if several := [patient for patient, names in splits.items() if len(names) > 1]:
            raise MeddapError(
                f"{len(several)} of {len(splits)} patients lie in more than one split of the data's own (folders "
                "named train, val or test); split_from=hash splits them anew"
            )

    def _lines(self, used: list[Source]) -> Iterator[str]:
        for summary in self._summaries(used):
            yield f"layout: {summary['title']} ({summary['name']}): {summary['images']} images of " + (
                f"{summary['patients']} patients" + (f"; {summary['note']}" if "note" in summary else "")
            )
        if self.alone:
            yield (
                f"{self.alone} of {len(used)} pictures have no patient: each counts as one. If patients have several, "
                "patient=REGEX of the path or patient_from=parent_folder names them"
            )
        if named := Counter(source.split for source in used if source.split):
            shares = ", ".join(f"{split} {named[split]}" for split in SPLITS)
            yield f"splits as the data name them: {shares}; split_from=hash splits them anew"
            if self.unnamed:
                yield f"  {self.unnamed} pictures lie in no folder named as a split and are split by hash"
        folders = Counter(self.inputs.below(source.name).parent.name for source in used if not source.classes)
        alike = 2 <= len(folders) <= _FEW <= sum(folders.values()) / len(folders)
        if self.config.class_from == "none" and alike and not {name.lower() for name in folders} <= set(SPLIT_NAMES):
            yield f"{len(folders)} folders hold all pictures: if they are classes, class_from=folder labels them"
