"""Examples from NIfTI pairs in nnU-Net's layout.

    DATA/dataset.json               {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, …}
    DATA/imagesTr/CASE_0000.nii.gz  one file per channel     DATA/labelsTr/CASE.nii.gz
    DATA/imagesTs/…  DATA/labelsTs/…                         the test cases, where there are any

Volumes are turned to axial slices by the same functions that make shards, so that the same image has the same digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data_prep.config import CtConfig, MriConfig
from data_prep.discovery import labelmaps
from data_prep.discovery.labelmaps import LabelFile
from data_prep.schema import content_digest
from data_prep.volumes import images, slicing
from data_prep.volumes.scaling import robust
from data_prep.volumes.volume import RejectedSeries, Volume
from eval.config import TaskConfig
from eval.data.examples import Examples, Picture, identified, matched, version_of
from eval.data.sources.shards import for_kind, presence
from meddap.console import say
from meddap.settings import SettingsError

Config = TypeVar("Config", CtConfig, MriConfig)
_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii(\.gz)?")
_IGNORE = "ignore"  # nnU-Net's name for what nobody annotated
_FOLDERS = {"": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


@dataclass(frozen=True)
class Case:
    """One volume: its split ("" where imagesTr, test where imagesTs), files of its channels, label map."""

    name: str
    split: str
    files: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class CaseVolume:
    """A volume's pixels (S, Z, H, W) int16 HU or uint16, labels (Z, H, W) or None, boxes (Z, 4), spacing (z, y, x).

    doubts  what speaks against HU in a CT that is read as HU (`files.values=trust`); "" if nothing does
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray
    spacing: tuple[float, float, float]
    kept: np.ndarray
    doubts: str = ""


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return every `files.plane_stride`-th slice that is not air."""
    root = Path(task.data)
    labels_there, channels_there = _described(root)
    names = dict(task.organs) or structures(root / "dataset.json", labels_there)
    ignored = _ignored(task, names, labels_there)
    channels = tuple(task.files.channels or channels_there)
    cases = _cases(root, len(channels))

    @lru_cache(maxsize=2)
    def stack(number: int) -> CaseVolume:
        return _stack(cases[number], task)

    rows, targets, annotated, where, marks = [], [], [], [], hashlib.sha256()
    doubts: list[str] = []
    for number, case in enumerate(tqdm(cases, "volumes", disable=None, leave=False)):
        volume = stack(number)
        doubts += [volume.doubts] if volume.doubts else []
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

    if doubts:
        count = f"{len(doubts)} of {len(cases)} volumes"
        say(f"{root}: {count} are read as HU against: {doubts[0]}; files.values=check refuses them")
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


def _described(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Return labels by name and the names of the channels of dataset.json."""
    path = root / "dataset.json"
    try:
        described = json.loads(path.read_text())
        channels = described.get("channel_names") or described["modality"]
        return _by_name(described["labels"]), [str(name).lower() for name in channels.values()]
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; expected a raw data set in nnU-Net's layout") from error
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


def _stack(case: Case, task: TaskConfig) -> CaseVolume:
    """Read a case. Raises SettingsError for a file that cannot be used, or that has another grid."""
    return _ct(case, task) if task.files.modality == "CT" else _mr(case)


def _ct(case: Case, task: TaskConfig) -> CaseVolume:
    config = CtConfig(values=task.files.values)
    volumes, labels = _read(case, images.read_ct, config)
    pixels = np.stack([volume.voxels for volume in volumes])
    body = pixels > config.air.threshold_hu
    cut = _cut(pixels, labels, body, config.air.min_body_fraction, volumes[0].spacing)
    doubts = [str(volume.notes["values_trusted"]) for volume in volumes if "values_trusted" in volume.notes]
    return replace(cut, doubts=doubts[0] if doubts else "")


def _mr(case: Case) -> CaseVolume:
    config, scaled = MriConfig(), []
    volumes, labels = _read(case, images.read_mr, config)
    body = []
    for file, volume in zip(case.files, volumes):
        scale = robust(volume.voxels)
        if scale is None:
            raise SettingsError(f"{file}: its foreground has one value only")
        scaled.append(scale.encode(volume.voxels))
        body.append(scaled[-1] > scale.level)
    return _cut(np.stack(scaled), labels, np.stack(body), config.min_foreground, volumes[0].spacing)


def _cut(
    pixels: np.ndarray,
    labels: np.ndarray | None,
    body: np.ndarray,
    least: float,
    spacing: tuple[float, float, float],
) -> CaseVolume:
    """Return a volume whose slices are kept where at least the share `least` is body in some channel."""
    inside = np.any(body, axis=0)
    boxes = np.array([slicing.body_box(plane) for plane in inside])
    return CaseVolume(pixels, labels, boxes, spacing, inside.mean(axis=(1, 2)) >= least)


def _read(case: Case, read: Callable[[Path, Config], Volume], config: Config) -> tuple[list[Volume], np.ndarray | None]:
    """Return the channels of a case and its label map on their grid."""
    config.geometry.planes = config.geometry.oblique = "reformat"
    config.min_slices = 1
    config.ignore = []  # the task says what is
    path = case.files[0]
    try:
        volumes = []
        for path in case.files:
            volumes.append(read(path, config))
        path = case.labels
        labels = labelmaps.of([LabelFile(str(case.labels), certain=True)], volumes[0], config)[0]
        _same_shape(case)
    except RejectedSeries as error:
        raise SettingsError(f"{path}: {error.reason}") from error
    return volumes, labels


def _same_shape(case: Case) -> None:
    """Raise SettingsError for a file of another grid: nnU-Net asks for one; another shape is somebody's mistake."""
    shapes = {path: images.Image(path, CtConfig()).shape for path in (*case.files, case.labels)}
    for path, shape in shapes.items():
        if shape != shapes[case.files[0]]:
            sizes = ["x".join(map(str, each)) for each in (shape, shapes[case.files[0]])]
            raise SettingsError(f"{path}: {sizes[0]} voxels, but {case.files[0].name} has {sizes[1]}; give one grid")
