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
from data_prep.disk import flush, temporary_of, write_atomic


@dataclass(frozen=True)
class Piece:
    """One staged sample and the shard row that it becomes."""

    digest: bytes
    staged: Path
    offset: int
    size: int
    subject: str
    series: str
    order: int


@dataclass(frozen=True)
class Plan:
    """One shard to write: its pieces lie sorted by the hash of their key."""

    root: Path
    name: str
    pieces: list[Piece]


def plan(root: Path, staging: Path, rows: Iterable[dict], samples_per_shard: int) -> list[Plan]:
    """The shards of all accepted series in `rows`."""
    by_split: dict[str, list[Piece]] = {split: [] for split in schema.SPLITS}
    for row in rows:
        manifest = row["manifest"]
        staged = staging / f"{manifest['source']}.tar"
        for key, offset, size, order in row["samples"]:
            digest = hashlib.sha256(key.encode()).digest()
            piece = Piece(digest, staged, offset, size, manifest["subject"], manifest["series"], order)
            by_split[manifest["split"]].append(piece)
    plans = []
    for split, pieces in by_split.items():
        count = -(-len(pieces) // samples_per_shard)
        shards: list[list[Piece]] = [[] for _ in range(count)]
        for piece in pieces:
            shards[int.from_bytes(piece.digest[:8], "big") % count].append(piece)
        names = (f"{split}/{number:06d}.tar" for number in range(count))
        plans += [Plan(root, name, sorted(part, key=lambda p: p.digest)) for name, part in zip(names, shards) if part]
    return plans


def write(shard: Plan) -> dict:
    """Write one shard and its index, each whole or not at all; returns its row for `dataset.json`."""
    path = shard.root / shard.name
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_of(path)
    rows, at = [], 0
    with open(temporary, "wb") as file:
        for piece in shard.pieces:
            with open(piece.staged, "rb") as staged:
                stretch = os.pread(staged.fileno(), piece.size, piece.offset)
            if len(stretch) != piece.size:
                raise schema.SchemaError(f"{piece.staged}: cut short; remove it and start again")
            file.write(stretch)
            rows.append(
                (at, piece.size, schema.short_hash(piece.subject), schema.short_hash(piece.series), piece.order)
            )
            at += piece.size
        file.write(schema.TAR_END)
    flush(temporary)
    os.replace(temporary, path)
    index = schema.index_of(path)
    write_atomic(index, _npy(np.array(rows, schema.INDEX_DTYPE)))
    return {
        "name": shard.name,
        "samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": schema.file_sha256(path),
        "index_sha256": schema.file_sha256(index),
    }


def describe(shards: list[dict], rows: list[dict], labels: dict[str, str], made_with: dict) -> dict:
    """`dataset.json`: the shards by split, statistics of the training patients, names of the labels."""
    accepted = [row["manifest"] for row in rows if row["manifest"]["status"] == "accepted"]
    splits = {}
    for split in schema.SPLITS:
        mine = [row for row in accepted if row["split"] == split]
        splits[split] = {
            "shards": [shard for shard in shards if shard["name"].startswith(f"{split}/")],
            "samples": sum(row["slices"] for row in mine),
            "series": len(mine),
            "subjects": len({row["subject"] for row in mine}),
        }
    values = sorted({value for row in accepted for value in row["annotated"]})
    return {
        "schema": schema.VERSION,
        "digest": schema.dataset_digest(splits),
        "splits": splits,
        "statistics": {"ct": statistics(row["histogram"] for row in rows if row["manifest"].get("split") == "train")},
        "labels": {str(value): labels.get(str(value), f"label {value}") for value in values},
        "made_with": made_with,
    }


def statistics(histograms: Iterable[dict[str, int]]) -> dict[str, float]:
    """Mean, standard deviation and percentiles of the body's HU; empty where there is none."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update({int(value): count for value, count in histogram.items()})
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
    """`manifest.jsonl`: a row per input series, sorted by the hash of its source."""
    manifests = sorted((row["manifest"] for row in rows), key=lambda manifest: manifest["source"])
    return "".join(json.dumps(manifest, sort_keys=True) + "\n" for manifest in manifests).encode()


def _npy(array: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()
