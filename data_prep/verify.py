"""Read a finished data set again and check that it holds what it says.

    python -m data_prep.verify DIR [workers=N]

Checks sums and counts of every shard and index, decodes every sample, and checks that keys are unique, no patient is in
two splits, and the manifest, the histograms and `dataset.json` agree. Exit status 0 only if all of it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from data_prep.sharding import archive_parts, check, description
from data_prep.sharding.check import ShardCheck, ShardReport
from data_prep.workers import LostJob, Workers
from meddap.console import command, fail, launch, parser, progress, say
from meddap.ranges import COUNT, check_ranges
from meddap.settings import load

_MINUTES, _GIGABYTES = 60.0, 4.0  # what one shard may take


@dataclass
class VerifyConfig:
    """Settings of the command."""

    workers: int = 1  # processes


@dataclass
class _Total:
    """Reports of one split, added up."""

    samples: int = 0
    subjects: set[int] = field(default_factory=set)
    series: Counter[int] = field(default_factory=Counter)
    keys: list[np.ndarray] = field(default_factory=list)
    classes: Counter[tuple[str, float]] = field(default_factory=Counter)
    channels: dict[str, int] = field(default_factory=dict)

    def add(self, report: ShardReport) -> None:
        self.samples += report.samples
        self.subjects |= set(report.subjects.tolist())
        values, counts = np.unique(report.series, return_counts=True)
        self.series.update(dict(zip(values.tolist(), counts.tolist())))
        self.keys.append(report.keys)
        self.classes.update(report.classes)
        for name, channels in report.channels.items():
            self.channels[name] = max(self.channels.get(name, 1), channels)


def problems(root: Path, workers: int) -> Iterator[str]:
    """Yield every problem of a data set as a line. Raises SchemaError if `dataset.json` is missing or damaged."""
    if archive_parts.folders(root) and not (root / "dataset.json").is_file():
        raise schema.SchemaError(f"{root}: holds parts that are not merged; run python -m data_prep.merge {root}")
    dataset = description.read_dataset(root)
    totals = {split: _Total() for split in dataset["splits"]}
    works: list[ShardCheck] = []
    split_of: dict[str, str] = {}
    for split, part in dataset["splits"].items():
        for row in part["shards"]:
            split_of[row["name"]] = split
            works.append(ShardCheck(root / row["name"], row, tuple(dataset["ignore"])))
    with Workers(workers, _MINUTES * 60, _GIGABYTES, [check.__name__]) as pool:
        for work, report in progress(pool.map(check.check_shard, works), len(works), "shards"):
            if isinstance(report, LostJob):
                yield f"{work.row['name']}: {report}"
                continue
            totals[split_of[work.row["name"]]].add(report)
            yield from (f"{work.row['name']}: {problem}" for problem in report.problems)
    yield from _unnamed(root, set(split_of))
    yield from _across(dataset, totals)
    yield from _described(root, dataset, totals)


def _unnamed(root: Path, named: set[str]) -> Iterator[str]:
    """Yield the shards below `root` that `dataset.json` does not name."""
    for path in sorted(root.rglob("*.tar")):
        name = path.relative_to(root).as_posix()
        if name not in named and not path.name.startswith("."):
            yield f"{name}: is not named by dataset.json; remove it or shard again"


def _across(dataset: dict[str, Any], totals: dict[str, _Total]) -> Iterator[str]:
    """Yield the problems that only all shards together show."""
    if schema.dataset_digest(dataset["splits"]) != dataset["digest"]:
        yield "dataset.json: its digest is not that of its shards; it was edited"
    for split, total in totals.items():
        stated = dataset["splits"][split]
        for name, count in (
            ("samples", total.samples),
            ("subjects", len(total.subjects)),
            ("series", len(total.series)),
        ):
            if stated[name] != count:
                yield f"{split}: {count} {name} in the shards, dataset.json says {stated[name]}"
        for column, classes in dataset["classes"].items():
            counts = [total.classes[column, place] for place in range(len(classes["names"]))]
            if counts != classes["samples"][split]:
                yield f"{split}: {counts} samples by class of {column}, dataset.json says {classes['samples'][split]}"
        for other, rest in totals.items():
            if other > split and (both := total.subjects & rest.subjects):
                yield f"{len(both)} patients are in {split} and in {other}: probes on this data set are worth nothing"
    for name in sorted({name for total in totals.values() for name in total.channels}):
        most, stated_most = (
            max(total.channels.get(name, 1) for total in totals.values()),
            dataset["channels"].get(name, 1),
        )
        if most != stated_most:
            yield f"{name}: its samples have up to {most} channels, dataset.json says {stated_most}"
    keys = np.concatenate([keys for total in totals.values() for keys in total.keys] or [np.empty(0, np.uint64)])
    if twice := len(keys) - len(np.unique(keys)):
        yield f"{twice} samples have a key that another sample has too"


def _described(root: Path, dataset: dict[str, Any], totals: dict[str, _Total]) -> Iterator[str]:
    """Yield how `manifest.jsonl` and `histograms.json` differ from the shards."""
    try:
        rows = description.read_manifest(root)
        histograms = description.read_histograms(root)
        series_of = {row["stack"]: schema.short_hash(row["stack"]) for row in rows if row["status"] == "accepted"}
    except (schema.SchemaError, ValueError) as error:
        yield str(error)
        return
    listed: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["status"] == "accepted":
            key = row["split"], series_of[row["stack"]]
            listed[key] = max(listed.get(key, 0), row["slices"])  # the sequences of a study share its slices
    there = {(split, series): count for split, total in totals.items() for series, count in total.series.items()}
    if missing := sum(max(count - there.get(key, 0), 0) for key, count in listed.items()):
        yield f"manifest.jsonl: {missing} slices of accepted series are in no shard"
    if extra := len(set(there) - set(listed)):
        yield f"{extra} series are in the shards and not in manifest.jsonl"
    if {name: description.statistics(counts) for name, counts in histograms.items()} != dataset["statistics"]:
        yield "dataset.json: its statistics are not those of histograms.json"


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options_parser = parser(
        "Check a finished data set, byte by byte: sums, counts, every sample, no patient in two splits. "
        "Exit status 0 only if all of it holds."
    )
    options_parser.add_argument("root", type=Path, metavar="DIR", help="the data set: the folder of dataset.json")
    options_parser.add_argument("overrides", nargs="*", metavar="key=value", help="workers=N: processes (1)")
    options = options_parser.parse_intermixed_args(arguments)
    config = load(VerifyConfig, None, options.overrides)
    check_ranges("", config, {"workers": COUNT})
    count = 0
    for problem in problems(options.root, config.workers):
        say(problem)
        count += 1
    if count:
        return fail(f"{options.root}: {count} problems, named above")
    dataset = schema.read_dataset(options.root)
    for split, part in dataset["splits"].items():
        say(f"  {split}: {part['samples']} slices of {part['subjects']} patients in {len(part['shards'])} shards")
    say(f"{options.root}: all is as it should be")
    return 0


if __name__ == "__main__":
    launch(main)
