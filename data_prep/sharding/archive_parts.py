"""A data set made in parts: each takes its share of the patients and is whole by itself; a merge names them as one.

OUT/part-003-of-064/     a data set of its own: shards, manifest.jsonl, histograms.json, dataset.json
OUT/dataset.json         after the merge: every part's shards, by their paths below OUT
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from data_prep import schema
from data_prep.sharding import writer
from meddap.disk import sole_writer, write_atomic
from meddap.settings import SettingsError

_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class ArchivePart:
    """Share `number` of `count`, counted from 1."""

    number: int
    count: int

    @property
    def folder(self) -> str:
        """The name of the part's folder; "" where there is one part only."""
        width = max(3, len(str(self.count)))
        return f"part-{self.number:0{width}d}-of-{self.count:0{width}d}" if self.count > 1 else ""

    def takes(self, subject: str) -> bool:
        """Whether a hashed patient belongs to this part: a pure function of the hash."""
        place = int(hashlib.sha256(f"part:{subject}".encode()).hexdigest()[:16], 16)
        return place % self.count == self.number - 1


def parse(text: str) -> ArchivePart:
    """A part from "3/64". Raises SettingsError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = ArchivePart(int(match[1]), int(match[2])) if match else None
    if part is None or not 1 <= part.number <= part.count:
        raise SettingsError(f"part={text}: expected NUMBER/COUNT, from 1/COUNT to COUNT/COUNT")
    return part


def folders(output: Path) -> list[Path]:
    """The parts that lie in `output`, sorted."""
    return sorted(path for path in output.glob("part-*-of-*") if _FOLDER.fullmatch(path.name))


def merge(output: Path) -> dict:
    """Name all parts in `output` as one data set; returns its `dataset.json`.

    Raises SettingsError where a part is missing, unfinished, of another division, or made with other settings.
    """
    there = folders(output)
    if not there:
        raise SettingsError(f"{output}: holds no parts (part-001-of-…); make them with part=1/N … part=N/N")
    counts = {int(_FOLDER.fullmatch(path.name)[2]) for path in there}
    if len(counts) > 1:
        raise SettingsError(f"{output}: holds parts of {sorted(counts)}; remove those of the wrong division")
    missing = sorted(set(range(1, counts.pop() + 1)) - {int(_FOLDER.fullmatch(path.name)[1]) for path in there})
    missing += [int(_FOLDER.fullmatch(path.name)[1]) for path in there if not (path / "dataset.json").is_file()]
    if missing:
        names = ", ".join(str(number) for number in sorted(missing)[:20])
        raise SettingsError(f"{output}: {len(missing)} parts are not finished: {names}; start them again")
    with sole_writer(output):
        return _merge(output, there)


def _merge(output: Path, there: list[Path]) -> dict:
    datasets = [schema.read_dataset(path) for path in there]
    made = [{key: value for key, value in each["made_with"].items() if key != "inputs"} for each in datasets]
    for path, settings in zip(there, made):
        if settings != made[0]:
            raise SettingsError(f"{path}: was made with other settings or another salt than {there[0].name}")
    manifest = [json.loads(line) for path in there for line in (path / "manifest.jsonl").read_text().splitlines()]
    histograms = writer.total_of(json.loads((path / "histograms.json").read_text()) for path in there)
    by_split: dict[str, list[dict]] = {split: [] for split in schema.SPLITS}
    for path, dataset in zip(there, datasets):
        for split, part in dataset["splits"].items():
            by_split[split] += [{**row, "name": f"{path.name}/{row['name']}"} for row in part["shards"]]
    inputs = hashlib.sha256("".join(each["made_with"]["inputs"] for each in datasets).encode()).hexdigest()
    names = {value: name for each in datasets for value, name in each["labels"].items()}
    classes = _added([each["classes"] for each in datasets])
    dataset = writer.describe(by_split, manifest, histograms, names, classes, {**made[0], "inputs": inputs})
    finish(output, dataset, manifest, histograms)
    return dataset


def _added(parts: list[dict]) -> dict:
    """`classes` of all parts as one: names are the same in each, counts are added."""

    def added(*same: object) -> object:
        if isinstance(same[0], dict):
            return {key: added(*(each[key] for each in same)) for key in same[0]}
        return same[0] if isinstance(same[0][0], str) else [sum(counts) for counts in zip(*same)]

    return added(*parts)


def finish(output: Path, dataset: dict, manifest: list[dict], histograms: dict) -> None:
    """Write what describes a data set, `dataset.json` last: it says that everything else is there."""
    write_atomic(output / "manifest.jsonl", writer.manifest_bytes(manifest))
    write_atomic(output / "histograms.json", (json.dumps(histograms, sort_keys=True) + "\n").encode())
    write_atomic(output / "dataset.json", (json.dumps(dataset, indent=1, sort_keys=True) + "\n").encode())
