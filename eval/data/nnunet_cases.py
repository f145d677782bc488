"""The volumes of a case in nnU-Net's layout, read as sharding reads them; refusals name the keys of a task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.config import CtConfig, MriConfig, PrepConfig
from data_prep.discovery import labelmaps
from data_prep.discovery.labelmaps import LabelFile
from data_prep.volumes import images, slicing
from data_prep.volumes.scaling import robust
from data_prep.volumes.volume import RejectedSeries, Volume
from eval.config import FilesConfig
from meddap.settings import SettingsError

Config = TypeVar("Config", CtConfig, MriConfig)
_DECIDED = {"units": "unit of the header's lengths", "transform": "transform", "compression": "compression"}


@dataclass(frozen=True)
class Case:
    """One volume: its split ("" where imagesTr, test where imagesTs), files of its channels, label map.

    stacked  its channels lie along the fourth axis of one file, which `files` names once for each
    """

    name: str
    split: str
    files: tuple[Path, ...]
    labels: Path
    stacked: bool = False

    def channel(self, place: int) -> tuple[int, int] | None:
        """Return (place, number of channels) along the fourth axis; None for a file with one channel."""
        return (place, len(self.files)) if self.stacked else None


@dataclass(frozen=True)
class CaseVolume:
    """A volume's pixels (S, Z, H, W) int16 HU or uint16, labels (Z, H, W) or None, boxes (Z, 4), spacing (z, y, x).

    notes  what was decided about its files: by the reader where a header left it open, or by the task
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray
    spacing: tuple[float, float, float]
    kept: np.ndarray
    notes: dict[str, object] = field(default_factory=dict)


def read(case: Case, files: FilesConfig) -> CaseVolume:
    """Read a case. Raises SettingsError for a file that cannot be used, or that has another grid."""
    return _ct(case, files) if files.modality == "CT" else _mr(case, files)


def said(notes: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield lines that sum up the notes of all volumes, for the console."""
    doubts = [each["values_trusted"] for each in notes if "values_trusted" in each]
    if doubts:
        count = f"{len(doubts)} of {len(notes)} volumes"
        yield f"{count} are read as HU against: {doubts[0]}; files.values=check refuses them"
    for key, what in _DECIDED.items():
        for value, number in Counter(each[key] for each in notes if key in each).most_common(3):
            yield f"{number} volumes, {what}: {_renamed(str(value))}"
    yield from map(_renamed, labelmaps.said(notes))


def _ct(case: Case, files: FilesConfig) -> CaseVolume:
    config = _configured(CtConfig(values=files.values), files)
    volumes, labels, notes = _read(case, lambda path, how, _: images.read_ct(path, how), config)
    pixels = np.stack([volume.voxels for volume in volumes])
    body = pixels > config.air.threshold_hu
    return replace(_cut(pixels, labels, body, config.air.min_body_fraction, volumes[0].spacing), notes=notes)


def _mr(case: Case, files: FilesConfig) -> CaseVolume:
    config, scaled = _configured(MriConfig(), files), []
    volumes, labels, notes = _read(case, images.read_mr, config)
    body = []
    for file, volume in zip(case.files, volumes):
        scale = robust(volume.voxels)
        if scale is None:
            raise SettingsError(f"{file}: its foreground has one value only")
        scaled.append(scale.encode(volume.voxels))
        body.append(scaled[-1] > scale.level)
    cut = _cut(np.stack(scaled), labels, np.stack(body), config.min_foreground, volumes[0].spacing)
    return replace(cut, notes=notes)


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


def _configured(config: Config, files: FilesConfig) -> Config:
    """Set what the task says, and what a probe has no choice in; return `config`."""
    for name in ("units", "disagreeing", "unoriented"):
        setattr(config.geometry, name, getattr(files.geometry, name))
    config.limits.volume_gb = files.limits.volume_gb
    config.label_grid, config.max_labels_outside = files.label_grid, files.max_labels_outside
    config.geometry.planes = config.geometry.oblique = "reformat"
    config.min_slices = 1
    config.ignore = []  # the task says what is
    return config


def _read(
    case: Case, read_volume: Callable[[Path, Config, tuple[int, int] | None], Volume], config: Config
) -> tuple[list[Volume], np.ndarray | None, dict[str, object]]:
    """Return the channels of a case, its label map on their grid, and the notes of all files."""
    path = case.files[0]
    try:
        volumes = []
        for place, path in enumerate(case.files):
            volumes.append(read_volume(path, config, case.channel(place)))
        for path in (*(() if case.stacked else case.files), case.labels):
            _check_shape(path, case, config)
        labels, notes = labelmaps.of([LabelFile(str(path), certain=True)], volumes[0], config)
    except RejectedSeries as error:
        raise SettingsError(f"{path}: {_renamed(error.reason)}") from error
    for volume in reversed(volumes):  # what is said of a case is what is said of its first channel
        notes = {**volume.notes, **notes}
    return volumes, labels, notes


def _check_shape(path: Path, case: Case, config: PrepConfig) -> None:
    """Raise SettingsError for a file of another grid: nnU-Net asks for one; another shape is somebody's mistake."""
    first = case.files[0]
    mine, other = images.Image(path, config).shape, images.Image(first, config, case.channel(0)).shape
    if mine != other:
        sizes = ["x".join(map(str, shape)) for shape in (mine, other)]
        raise SettingsError(f"{path}: {sizes[0]} voxels, but {first.name} has {sizes[1]}; give one grid")


def _keys(config: object) -> Iterator[str]:
    """Yield the dotted names of all settings of a dataclass."""
    for one in fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        yield from (f"{one.name}.{key}" for key in _keys(value)) if is_dataclass(value) else [one.name]


_SHARED = sorted({*_keys(FilesConfig())} & {*_keys(CtConfig()), *_keys(MriConfig())})
_ONE = f"(?:{'|'.join(map(re.escape, _SHARED))})"
_NAMED = re.compile(rf"(?<![\w.]){_ONE}(?==| says)|(?<=\(){_ONE}(?=\))")


def _renamed(text: str) -> str:
    """Return a text of sharding with the keys of the task: `geometry.units=mm` is `files.geometry.units=mm` here."""
    return _NAMED.sub(r"files.\g<0>", text)
