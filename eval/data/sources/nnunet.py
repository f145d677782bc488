"""Examples from NIfTI pairs in nnU-Net's layout, or in that of a public set as it is downloaded (MSD, BTCV, KiTS …).

    DATA/dataset.json               {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, …}
    DATA/imagesTr/CASE_0000.nii.gz  one file per channel     DATA/labelsTr/CASE.nii.gz
    DATA/imagesTs/…  DATA/labelsTs/…                         the test cases, where there are any

Volumes are turned to axial slices by the same functions that make shards, so that the same image has the same digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.schema import content_digest
from data_prep.volumes import images
from eval.config import TaskConfig
from eval.data import nnunet_cases, raw_layouts
from eval.data.examples import Examples, Picture, identified, matched, version_of
from eval.data.nnunet_cases import Case, CaseVolume
from eval.data.sources.shards import for_kind, presence
from meddap.console import say
from meddap.settings import SettingsError

_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii(\.gz)?")
_IGNORE = "ignore"  # nnU-Net's name for what nobody annotated
_FOLDERS = {"": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return every `files.plane_stride`-th slice that is not air."""
    root = Path(task.data)
    labels_there, channels, cases = _found(root, task)
    names = dict(task.organs) or structures(root / "dataset.json", labels_there)
    if not names:
        raise SettingsError(f"{root}: nothing names the values of its label maps; give organs.NAME=VALUE for each")
    ignored = _ignored(task, names, labels_there)

    @lru_cache(maxsize=2)
    def stack(number: int) -> CaseVolume:
        return nnunet_cases.read(cases[number], task.files)

    rows, targets, annotated, where, marks = [], [], [], [], hashlib.sha256()
    notes: list[dict[str, object]] = []
    for number, case in enumerate(tqdm(cases, "volumes", disable=None, leave=False)):
        volume = stack(number)
        notes.append(volume.notes)
        marks.update(b"" if volume.labels is None else np.ascontiguousarray(volume.labels).tobytes())
        there = [volume.labels is not None and bool((volume.labels == value).any()) for value in names.values()]
        for place in np.flatnonzero(volume.kept)[:: task.files.plane_stride]:
            labels = None if volume.labels is None else volume.labels[place]
            targets.append(presence(labels, list(names.values()), there, task.min_pixels, ignored))
            annotated.append(there)
            where.append((number, int(place)))
            digest = content_digest(volume.pixels[:, place])
            rows.append((case.name, case.split, place, place * volume.spacing[0], digest))

    def reader(row: int) -> Picture:
        number, place = where[row]
        volume = stack(number)
        row0, row1, column0, column1 = (int(each) for each in volume.boxes[place])
        return Picture(
            np.ascontiguousarray(volume.pixels[:, place]),
            channels,
            "hu" if volume.pixels.dtype == np.int16 else "mr16",
            (row0, row1, column0, column1),
            spacing=volume.spacing[1:],
            labelmap=None if volume.labels is None else np.ascontiguousarray(volume.labels[place]),
        )

    for line in nnunet_cases.said(notes):
        say(f"{root}: {line}")
    if not rows:
        raise SettingsError(f"{root}: every slice is air; is files.modality={task.files.modality} right?")
    case_names, splits, orders, positions, digests = zip(*rows)
    pattern = task.files.patient
    studies = identified(case_names, "series")
    examples = Examples(
        names=tuple(names),
        values=tuple(names.values()),
        ignored=ignored,
        keys=np.array([f"{study}-{order:05d}" for study, order in zip(studies, orders)]),
        subjects=identified(matched(case_names, pattern, "files.patient") if pattern else case_names, "patient"),
        studies=studies,
        sites=np.full(len(rows), ""),
        splits=np.array(splits),
        orders=np.array(orders, np.int64),
        positions=np.array(positions),
        digests=np.array(digests, np.uint64),
        targets=np.array(targets, np.float64).reshape(len(rows), len(names)),
        annotated=np.array(annotated, bool).reshape(len(rows), len(names)),
        version=version_of(np.array(digests, np.uint64), np.array(targets), marks.hexdigest()),
        reader=reader,
    )
    return for_kind(examples, task.kind)


def _found(root: Path, task: TaskConfig) -> tuple[dict[str, Any], tuple[str, ...], list[Case]]:
    """Return label name → value, names of channels and the cases: of nnU-Net's layout, else of a public set's own."""
    if task.files.layout in ("auto", "nnunet") and any((root / "imagesTr").glob("*_0000.nii*")):
        labels, channels = _described(root)
        names = tuple(task.files.channels or channels)
        return labels, names, _cases(root, len(names))
    raw = None if task.files.layout == "nnunet" else raw_layouts.find(root, task.files)
    if raw is None:
        labels, channels = _described(root)  # says what nnU-Net's layout would have
        return labels, tuple(channels), _cases(root, len(channels))
    say(f"{root}: {raw.title}: {len(raw.cases)} cases with labels, {', '.join(raw.channels)}")
    return dict(raw.labels), raw.channels, raw.cases


def _described(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Return labels by name and the names of the channels of dataset.json."""
    path = root / "dataset.json"
    try:
        described = json.loads(path.read_text())
        channels = described.get("channel_names") or described["modality"]
        return _by_name(described["labels"]), [str(name).lower() for name in channels.values()]
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}; expected a raw data set in nnU-Net's layout, or a public set as it is "
            "downloaded, whose images are of files.modality"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path}: names no labels and channels ({error}); see nnU-Net's dataset format") from error


def _by_name(labels: dict[str, Any]) -> dict[str, Any]:
    """Return name → value or list of values. Version 1 (and the Medical Segmentation Decathlon) has number → name.

    Raises ValueError for labels that are neither.
    """
    if all(str(key).isdecimal() for key in labels) and all(isinstance(name, str) for name in labels.values()):
        return {name: int(number) for number, name in labels.items()}
    return {str(name): each if isinstance(each, list) else int(each) for name, each in labels.items()}


def structures(path: Path, labels: dict[str, Any]) -> dict[str, int]:
    """Return name → value of what a dataset.json (`path`) says is to be drawn: no background, nothing ignored.

    Raises SettingsError for regions (a name for several values), which are not drawn.
    """
    if regions := [name for name, value in labels.items() if isinstance(value, list) and len(value) > 1]:
        raise SettingsError(
            f"{path}: label {regions[0]!r} is a region of values {labels[regions[0]]}; regions are not read, name the "
            f"values instead, e.g. organs.{regions[0]}={labels[regions[0]][0]}"
        )
    single = {name: value[0] if isinstance(value, list) else value for name, value in labels.items() if value != []}
    return {name: int(value) for name, value in single.items() if int(value) > 0 and name.lower() != _IGNORE}


def _ignored(task: TaskConfig, names: dict[str, int], labels: dict[str, Any]) -> tuple[int, ...]:
    """Return the label values that nobody annotated: those configured and "ignore", except what is to be drawn."""
    said = [value for name, value in labels.items() if name.lower() == _IGNORE and isinstance(value, int)]
    return tuple(sorted({*task.files.ignore, *said} - set(names.values())))


def _cases(root: Path, channels: int) -> list[Case]:
    found = []
    for split, (images_folder, labels_folder) in _FOLDERS.items():
        files: dict[str, dict[int, Path]] = {}
        for path in sorted((root / images_folder).glob("*.nii*")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                raise SettingsError(f"{path}: expected CASE_0000.nii.gz, the channel's number last")
            files.setdefault(match["case"], {})[int(match["channel"])] = path
        for name, mine in files.items():
            if sorted(mine) != list(range(channels)):
                raise SettingsError(f"{root / images_folder / name}_….nii.gz: {len(mine)} channels, not {channels}")
            maps = [path for suffix in images.NIFTI if (path := root / labels_folder / f"{name}{suffix}").is_file()]
            if not maps and split == "":
                raise SettingsError(f"{root / labels_folder / name}.nii.gz: not found; every training case needs one")
            if maps:  # test cases without labels test nothing
                found.append(Case(name, split, tuple(mine[number] for number in sorted(mine)), maps[0]))
    if not found:
        raise SettingsError(f"{root}: has no imagesTr/CASE_0000.nii.gz")
    return found
