"""Read a finished data set again and check that it holds what it says.

    python -m data_prep.verify DIR [workers=N]

Sums and counts of every shard and index, every sample decoded, keys unique, no patient in two splits, and the
manifest, the histograms and `dataset.json` in agreement. Exit status 0 only if all of it holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep import schema
from data_prep.sharding import archive_parts, check, writer
from data_prep.sharding.check import ShardCheck, ShardReport
from data_prep.workers import Failure, Workers
from meddap.console import fail, progress, say
from meddap.settings import SettingsError, load

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
    classes: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, report: ShardReport) -> None:
        self.samples += report.samples
        self.subjects |= set(report.subjects.tolist())
        values, counts = np.unique(report.series, return_counts=True)
        self.series.update(dict(zip(values.tolist(), counts.tolist())))
        self.keys.append(report.keys)
        self.classes.update(report.classes)


def problems(root: Path, workers: int) -> Iterator[str]:
    """Every problem of a data set, as a line. Raises SchemaError where it has no `dataset.json`."""
    if archive_parts.folders(root) and not (root / "dataset.json").is_file():
        raise schema.SchemaError(f"{root}: holds parts that are not merged; run python -m data_prep.merge {root}")
    dataset = schema.read_dataset(root)
    totals = {split: _Total() for split in dataset["splits"]}
    works, split_of = [], {}
    for split, part in dataset["splits"].items():
        for row in part["shards"]:
            split_of[row["name"]] = split
            works.append(ShardCheck(root / row["name"], row))
    with Workers(workers, _MINUTES * 60, _GIGABYTES) as pool:
        for work, report in progress(pool.map(check.check_shard, works), len(works), "shards"):
            if isinstance(report, Failure):
                yield f"{work.row['name']}: {report}"
                continue
            totals[split_of[work.row["name"]]].add(report)
            yield from (f"{work.row['name']}: {problem}" for problem in report.problems)
    yield from _unnamed(root, set(split_of))
    yield from _across(dataset, totals)
    yield from _described(root, dataset, totals)


def _unnamed(root: Path, named: set[str]) -> Iterator[str]:
    """Shards that lie there and that `dataset.json` does not name."""
    for path in sorted(root.rglob("*.tar")):
        name = path.relative_to(root).as_posix()
        if name not in named and not path.name.startswith("."):
            yield f"{name}: is not named by dataset.json; remove it or shard again"


def _across(dataset: dict, totals: dict[str, _Total]) -> Iterator[str]:
    """What only all shards together show."""
    if schema.dataset_digest(dataset["splits"]) != dataset["digest"]:
        yield "dataset.json: its digest is not that of its shards; it was edited"
    for split, total in totals.items():
        said = dataset["splits"][split]
        for name, count in (
            ("samples", total.samples),
            ("subjects", len(total.subjects)),
            ("series", len(total.series)),
        ):
            if said[name] != count:
                yield f"{split}: {count} {name} in the shards, dataset.json says {said[name]}"
        for column, found in dataset["classes"].items():
            counts = [total.classes[column, place] for place in range(len(found["names"]))]
            if counts != found["samples"][split]:
                yield f"{split}: {counts} samples by class of {column}, dataset.json says {found['samples'][split]}"
        for other, rest in totals.items():
            if other > split and (both := total.subjects & rest.subjects):
                yield f"{len(both)} patients are in {split} and in {other}: probes on this data set are worth nothing"
    keys = np.concatenate([keys for total in totals.values() for keys in total.keys] or [np.empty(0, np.uint64)])
    if twice := len(keys) - len(np.unique(keys)):
        yield f"{twice} samples have a key that another sample has too"


def _described(root: Path, dataset: dict, totals: dict[str, _Total]) -> Iterator[str]:
    """`manifest.jsonl` and `histograms.json` against the shards."""
    try:
        rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
        histograms = json.loads((root / "histograms.json").read_text())
    except (OSError, ValueError) as error:
        yield f"manifest.jsonl or histograms.json cannot be read: {error}"
        return
    told: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["status"] == "accepted":
            at = row["split"], schema.short_hash(row["stack"])
            told[at] = max(told.get(at, 0), row["slices"])  # the sequences of a study share its slices
    there = {(split, series): count for split, total in totals.items() for series, count in total.series.items()}
    if missing := sum(max(count - there.get(at, 0), 0) for at, count in told.items()):
        yield f"manifest.jsonl: {missing} slices of accepted series are in no shard"
    if extra := len(set(there) - set(told)):
        yield f"{extra} series are in the shards and not in manifest.jsonl"
    if {name: writer.statistics(counts) for name, counts in histograms.items()} != dataset["statistics"]:
        yield "dataset.json: its statistics are not those of histograms.json"


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="data_prep.verify", description="Check a finished data set, byte by byte.")
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set: the folder of dataset.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="workers=N: processes")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load(VerifyConfig, None, options.overrides)
        count = 0
        for problem in problems(options.root, config.workers):
            say(problem)
            count += 1
    except (SettingsError, schema.SchemaError) as error:
        return fail(str(error))
    if count:
        return fail(f"{options.root}: {count} problems, named above")
    dataset = schema.read_dataset(options.root)
    for split, part in dataset["splits"].items():
        say(f"  {split}: {part['samples']} slices of {part['subjects']} patients in {len(part['shards'])} shards")
    say(f"{options.root}: all is as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
