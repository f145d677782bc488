"""The second half of sharding: staged series become shards, indices and `dataset.json`.

A slice's shard and its place there follow from a hash of its key, so that a shard is a random sample
of its split's patients, and the bytes are the same whatever the workers, the order or the restarts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import schema
from data_prep.sharding.staging import Record
from meddap.disk import flush, temporary_of, write_atomic


@dataclass(frozen=True)
class StagedSample:
    """One staged sample and the shard row that it becomes."""

    digest: bytes
    staged: Path
    offset: int
    size: int
    subject: str
    series: str
    order: int
    content: int


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its samples lie sorted by the hash of their key."""

    root: Path
    name: str
    samples: list[StagedSample]


def plan_shards(
    root: Path, folder: Path, records: Iterable[tuple[str, Record]], samples_per_shard: int
) -> list[ShardPlan]:
    """Plan the shards below `root` for all samples of `records`: (name of a staged file in `folder`, its record)."""
    by_split: dict[str, list[StagedSample]] = {split: [] for split in schema.SPLITS}
    for name, record in records:
        staged = folder / f"{name}.tar"
        for key, offset, size, series, order, content in record.samples:
            digest = hashlib.sha256(key.encode()).digest()
            sample = StagedSample(digest, staged, offset, size, record.subject, series, order, content)
            by_split[record.split].append(sample)
    plans = []
    for split, samples in by_split.items():
        count = -(-len(samples) // samples_per_shard)
        shards: list[list[StagedSample]] = [[] for _ in range(count)]
        for sample in samples:
            shards[int.from_bytes(sample.digest[:8], "big") % count].append(sample)
        for number, shard in enumerate(shards):
            if shard:
                shard.sort(key=lambda sample: sample.digest)
                plans.append(ShardPlan(root, f"{split}/{number:06d}.tar", shard))
    return plans


def write_shard(shard: ShardPlan) -> dict:
    """Write one shard and its index, each whole or not at all; returns its row for `dataset.json`."""
    path = shard.root / shard.name
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_of(path)
    rows, at, digest = [], 0, hashlib.sha256()
    with open(temporary, "wb") as file:
        for sample in shard.samples:
            with open(sample.staged, "rb") as staged:
                block = os.pread(staged.fileno(), sample.size, sample.offset)
            if len(block) != sample.size:
                raise schema.SchemaError(f"{sample.staged}: cut short; remove it and start again")
            file.write(block)
            digest.update(block)
            rows.append(
                (at, sample.size, schema.short_hash(sample.subject), schema.short_hash(sample.series), sample.order)
            )
            at += sample.size
        file.write(schema.TAR_END)
        digest.update(schema.TAR_END)
    flush(temporary)
    os.replace(temporary, path)
    index, content = schema.index_of(path), schema.content_of(path)
    write_atomic(index, _npy(np.array(rows, schema.INDEX_DTYPE)))
    write_atomic(content, _npy(np.array([sample.content for sample in shard.samples], np.uint64)))
    return {
        "name": shard.name,
        "samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
        "index_sha256": schema.file_sha256(index),
        "content_sha256": schema.file_sha256(content),
    }


def describe(
    shards: dict[str, list[dict]],
    manifest: list[dict],
    histograms: dict[str, dict[str, int]],
    labels: dict[str, str],
    classes: dict[str, dict],
    made_with: dict,
) -> dict:
    """`dataset.json`: the shards by split, statistics of the training patients, names of labels and classes."""
    accepted = [row for row in manifest if row["status"] == "accepted"]
    splits = {}
    for split in schema.SPLITS:
        mine = [row for row in accepted if row["split"] == split]
        splits[split] = {
            "shards": shards.get(split, []),
            "samples": sum(row["samples"] for row in shards.get(split, [])),
            "series": len({row["stack"] for row in mine}),
            "subjects": len({row["subject"] for row in mine}),
        }
    values = sorted({value for row in accepted for value in row["annotated"]})
    return {
        "schema": schema.VERSION,
        "digest": schema.dataset_digest(splits),
        "splits": splits,
        "sequences": dict(sorted(Counter(row["sequence"] for row in accepted).items())),
        "statistics": {name: statistics(counts) for name, counts in sorted(histograms.items())},
        "labels": {str(value): labels.get(str(value), f"label {value}") for value in values},
        "classes": classes,
        "made_with": made_with,
    }


def classes(records: Iterable[Record], names: dict[str, tuple[str, ...]]) -> dict[str, dict]:
    """Of every label column the names of its classes, and by split how many samples and patients each class has."""
    found = {
        column: {"names": list(each)}
        | {unit: {split: [0] * len(each) for split in schema.SPLITS} for unit in ("samples", "patients")}
        for column, each in names.items()
    }
    seen = set()
    for record in records:
        for column, place in record.labels.items() if record.samples else ():
            found[column]["samples"][record.split][place] += len(record.samples)
            if (who := (column, record.subject, place)) not in seen:
                seen.add(who)
                found[column]["patients"][record.split][place] += 1
    return found


def total_of(histograms: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of histograms: sequence → stored value → count."""
    total: dict[str, Counter[str]] = {}
    for each in histograms:
        for name, counts in each.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counts.items(), key=lambda item: int(item[0]))) for name, counts in sorted(total.items())}


def statistics(histogram: dict[str, int]) -> dict[str, float]:
    """Mean, standard deviation and percentiles of the foreground's stored values; empty where there is none."""
    total = {int(value): count for value, count in histogram.items()}
    if not total:
        return {}
    values = np.array(sorted(total), dtype=np.float64)
    counts = np.array([total[int(value)] for value in values], dtype=np.float64)
    mean = float((values * counts).sum() / counts.sum())
    spread = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    places = np.searchsorted(np.cumsum(counts) / counts.sum(), (0.005, 0.5, 0.995))
    low, median, high = (float(values[min(place, len(values) - 1)]) for place in places)
    return {"mean": mean, "std": spread, "p0.5": low, "p50": median, "p99.5": high}


def manifest_bytes(rows: list[dict]) -> bytes:
    """`manifest.jsonl`: the rows sorted by the hash of their source, then as they are."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: json.loads(line)["source"])).encode()


def _npy(array: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()
