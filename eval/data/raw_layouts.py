"""Public segmentation sets as they are downloaded: MSD, BTCV, AMOS, KiTS and others, by the rules that sharding has.

`data_prep/discovery/layouts` says of each what is an image, which label map belongs to it, and what its values mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.discovery.layouts import described, recognise
from data_prep.discovery.layouts.recognise import Known, Recognised, Root
from data_prep.discovery.layouts.rules import COMMANDS
from data_prep.volumes import images
from eval.config import FilesConfig
from eval.data.nnunet_cases import Case
from meddap.settings import SettingsError

_TEST = "imagesTs/"  # where test cases lie; what has no labels there tests nothing


@dataclass(frozen=True)
class RawSet:
    """A recognised set: its title, its cases with labels, label name → value, and the names of the channels."""

    title: str
    cases: list[Case]
    labels: dict[str, int]
    channels: tuple[str, ...]


def find(root: Path, files: FilesConfig) -> RawSet | None:
    """Return the set that lies in a folder, None where no layout fits and none is asked for.

    Raises SettingsError, LayoutError for a layout that is asked for and does not fit, for two layouts in one folder,
    and for label maps that cannot be read as they are.
    """
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.nii*") if path.is_file())
    command = COMMANDS[files.modality]
    found = recognise.recognise(names, names, False, files.layout, command, lambda name: (root / name).is_file())
    if not found.roots:
        return None
    layouts = {each.layout.name: each.layout for each in found.roots}
    if len(layouts) > 1:
        raise SettingsError(f"{root}: files of {' and '.join(layouts)}; name one with files.layout, or give its folder")
    ((name, layout),) = layouts.items()
    known = {path: each for path, each in found.files.items() if each.entry.role == "image"}
    mine = {path: each for path, each in known.items() if each.entry.only in ("", command)}
    if not mine:
        raise SettingsError(f"{root}: {layout.title}: no {files.modality} images; files.modality says which are read")
    if odd := [path for path, each in mine.items() if each.entry.organs or each.entry.orientation or each.entry.beside]:
        raise SettingsError(
            f"{root / odd[0]}: {layout.title} is read by sharding alone; shard it, and take source=shards"
        )
    said = [_description(root, each) for each in found.roots]
    labels = {name: int(value) for each in said for value, name in each.labels.items()}
    labels = labels or {name: int(value) for value, name in layout.labels.items()}
    if regions := [region for each in said for region in each.regions]:
        raise SettingsError(f"{root}: label {regions[0]!r} is a region of values; name the values with organs instead")
    stacked = any(each.entry.channels for each in mine.values())
    channels = _channels(said[0], next(iter(mine.values())), stacked, files)
    cases = [case for path in sorted(mine) for case in _case(root, path, mine[path], found, len(channels), stacked)]
    if not cases:
        raise SettingsError(f"{root}: {layout.title} ({name}): no image has a label map")
    return RawSet(layout.title, cases, labels, channels)


def _description(root: Path, layout_root: Root) -> described.Description:
    file = layout_root.layout.described_by
    path = root / layout_root.start / file
    return described.read(path, str(path)) if file else described.Description()


def _channels(said: described.Description, first: Known, stacked: bool, files: FilesConfig) -> tuple[str, ...]:
    """Return names of the channels: those of the task, of the description where one file holds several, else one."""
    if files.channels:
        return tuple(files.channels)
    if stacked:
        return tuple(name.lower() for _, name in sorted(said.channels.items()))
    return ("ct",) if files.modality == "CT" else (first.channel or "mr",)


def _case(root: Path, path: str, known: Known, found: Recognised, channels: int, stacked: bool) -> list[Case]:
    """Return the case of an image, [] where it has no label map. Raises SettingsError where it has several."""
    maps = found.labels_of(path)
    if len(maps) > 1:
        raise SettingsError(f"{root / path}: {len(maps)} label maps ({', '.join(maps[:3])}); leave one")
    if not maps:
        return []
    split = "test" if _TEST in path else ""
    files = (root / path,) * (channels if stacked else 1)
    return [Case(known.patient or images.stem(path), split, files, root / maps[0], stacked=stacked)]
