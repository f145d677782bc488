"""The second half of sharding: staged samples become shards and their indices.

A slice's shard and its place there follow from a hash of its key, so that a shard is a random sample
of its split's patients, and the bytes are the same whatever the workers, the order or the restarts.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from data_prep.sharding.staging import Record
from meddap.disk import file_sha256, flush, temporary_of, write_atomic


@dataclass(frozen=True)
class StagedSample:
    """One staged sample: where its bytes lie, and its row of the index. `digest` is the hash of its key."""

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
    """One shard to write; its samples are sorted by the hash of their key."""

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


def write_shard(shard: ShardPlan) -> dict[str, Any]:
    """Write one shard and its index, each whole or not at all; return its row for `dataset.json`.

    Raises SchemaError for a staged file that was cut, OSError for the disk.
    """
    path = shard.root / shard.name
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_of(path)
    rows, offset, digest = [], 0, hashlib.sha256()
    with open(temporary, "wb") as file:
        for sample in shard.samples:
            with open(sample.staged, "rb") as staged:
                block = os.pread(staged.fileno(), sample.size, sample.offset)
            if len(block) != sample.size:
                raise schema.SchemaError(f"{sample.staged}: cut short; remove it and start again")
            file.write(block)
            digest.update(block)
            hashes = schema.short_hash(sample.subject), schema.short_hash(sample.series)
            rows.append((offset, sample.size, *hashes, sample.order))
            offset += sample.size
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
        "index_sha256": file_sha256(index),
        "content_sha256": file_sha256(content),
    }


def _npy(array: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()
