"""A data set made in parts: each takes its share of the patients and is whole by itself; a merge names them as one.

OUT/part-003-of-064/     a data set of its own: shards, manifest.jsonl, histograms.json, dataset.json
OUT/dataset.json         after the merge: every part's shards, by their paths below OUT
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import schema
from data_prep.sharding import description, warnings
from meddap.disk import sole_writer
from meddap.settings import SettingsError

_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class ArchivePart:
    """Share `number` of `count`, counted from 1."""

    number: int
    count: int

    @property
    def folder(self) -> str:
        """The name of the part's folder; "" if there is one part only."""
        width = max(3, len(str(self.count)))
        return f"part-{self.number:0{width}d}-of-{self.count:0{width}d}" if self.count > 1 else ""

    def takes(self, subject: str) -> bool:
        """Return whether a hashed patient belongs to this part: a pure function of the hash."""
        place = int(hashlib.sha256(f"part:{subject}".encode()).hexdigest()[:16], 16)
        return place % self.count == self.number - 1


def parse(text: str) -> ArchivePart:
    """Return the part that "3/64" names. Raises SettingsError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = ArchivePart(int(match[1]), int(match[2])) if match else None
    if part is None or not 1 <= part.number <= part.count:
        raise SettingsError(f"part={text}: expected NUMBER/COUNT, from 1/COUNT to COUNT/COUNT")
    return part


def folders(output: Path) -> dict[Path, ArchivePart]:
    """Return the folders of parts in `output`, sorted by name, with the part that each holds."""
    matches = {path: _FOLDER.fullmatch(path.name) for path in sorted(output.glob("part-*-of-*"))}
    return {path: ArchivePart(int(match[1]), int(match[2])) for path, match in matches.items() if match}


def merge(output: Path) -> dict[str, Any]:
    """Name all parts in `output` as one data set; return its `dataset.json`.

    Raises SettingsError if a part is missing, unfinished, of another division, or made with other settings.
    """
    there = folders(output)
    if not there:
        raise SettingsError(f"{output}: holds no parts (part-001-of-…); make them with part=1/N … part=N/N")
    counts = {part.count for part in there.values()}
    if len(counts) > 1:
        raise SettingsError(f"{output}: holds parts of {sorted(counts)}; remove those of the wrong division")
    missing = sorted(set(range(1, counts.pop() + 1)) - {part.number for part in there.values()})
    missing += [part.number for path, part in there.items() if not (path / "dataset.json").is_file()]
    if missing:
        names = ", ".join(str(number) for number in sorted(missing)[:20])
        what = f"part {names} is not finished; start it again"
        if len(missing) > 1:
            what = f"{len(missing)} parts are not finished: {names}; start them again"
        raise SettingsError(f"{output}: {what}")
    with sole_writer(output):
        return _merge(output, list(there))


def _merge(output: Path, paths: list[Path]) -> dict[str, Any]:
    datasets = [description.read_dataset(path) for path in paths]
    settings = [{key: value for key, value in one["made_with"].items() if key != "inputs"} for one in datasets]
    for path, one in zip(paths, settings):
        if one != settings[0]:
            raise SettingsError(f"{path}: was made with other settings or another salt than {paths[0].name}")
    manifest = [row for path, one in zip(paths, datasets) for row in description.read_manifest(path, one)]
    histograms = description.total_of(description.read_histograms(path) for path in paths)
    shards: dict[str, list[dict]] = {split: [] for split in schema.SPLITS}
    for path, one in zip(paths, datasets):
        for split, part in one["splits"].items():
            shards[split] += [{**row, "name": f"{path.name}/{row['name']}"} for row in part["shards"]]
    inputs = hashlib.sha256("".join(one["made_with"]["inputs"] for one in datasets).encode()).hexdigest()
    names = {value: name for one in datasets for value, name in one["labels"].items()}
    classes = _added([one["classes"] for one in datasets])
    patients = {split: sum(one["splits"][split]["subjects"] for one in datasets) for split in schema.SPLITS}
    warned = [line for one in datasets for line in one.get("warnings", [])]
    warned = list(dict.fromkeys([*warned, *warnings.of_counts(patients, settings[0]["settings"]["split"])]))
    made_with = {**settings[0], "inputs": inputs}
    dataset = description.describe(shards, manifest, histograms, names, classes, made_with, warned)
    description.write(output, dataset, manifest, histograms)
    return dataset


def _added(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `classes` of all parts as one: names are the same in each, counts are added."""

    def added(*same: Any) -> Any:
        if isinstance(same[0], dict):
            return {key: added(*(each[key] for each in same)) for key in same[0]}
        return same[0] if isinstance(same[0][0], str) else [sum(counts) for counts in zip(*same)]

    return added(*parts)
