"""Tiny data sets written by the schema alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from meddap.disk import file_sha256


def identity(subject: str, order: int) -> dict[str, Any]:
    """What names slice `order` of the one series of a subject: hashes of the subject's text."""
    digest = hashlib.sha256(subject.encode()).hexdigest()[:32]
    return {"subject": digest, "series": digest[::-1], "order": order, "key": f"{digest}-{order:05d}"}


def body_slice(rng: np.random.Generator, subject: int, order: int, size: int = 64) -> schema.Slice:
    """An ellipse of tissue with two organs (label 1 bright and left, label 2 dark and right) in air."""
    rows, columns = np.mgrid[:size, :size]
    centre = size / 2 + rng.uniform(-2, 2, 2)
    body = ((rows - centre[0]) / (size * 0.36)) ** 2 + ((columns - centre[1]) / (size * 0.42)) ** 2 < 1
    pixels = np.where(body, 40.0, -1000.0) + rng.normal(0, 10, (size, size)) * body
    labelmap = np.zeros((size, size), np.uint8)
    for value, side, hu in ((1, -1, 250.0), (2, 1, -120.0)):
        if rng.random() < 0.7:
            at = (centre[0] + rng.uniform(-4, 4), centre[1] + side * size * 0.2)
            organ = (rows - at[0]) ** 2 + (columns - at[1]) ** 2 < (size * 0.1) ** 2
            pixels[organ] += hu
            labelmap[organ] = value
    where = np.nonzero(body)
    return schema.Slice(
        pixels=np.rint(pixels).astype(np.int16)[None],
        sequences=("ct",),
        spacing=(2.0, 2.0),
        position=3.0 * order,
        **identity(f"subject {subject}", order),
        box=(int(where[0].min()), int(where[0].max()) + 1, int(where[1].min()), int(where[1].max()) + 1),
        labelmap=labelmap,
        annotated=(1, 2),
    )


def write_dataset(
    root: Path,
    patients: dict[str, int],
    slices: int = 6,
    size: int = 64,
    seed: int = 0,
    per_shard: int = 10,
    make: Callable[..., schema.Slice] = body_slice,
    **more: object,
) -> Path:
    """A data set of `patients[split]` patients with `slices` slices each, by the schema's own functions.

    make  (rng, subject, order, size) → Slice; more: further entries of dataset.json
    """
    rng, splits, subject = np.random.default_rng(seed), {}, 0
    for split, count in patients.items():
        samples = []
        for _ in range(count):
            samples += [make(rng, subject, order, size) for order in range(slices)]
            subject += 1
        shards = []
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(-(-len(samples) // per_shard)):
            shards.append(
                _write_shard(root, f"{split}/{number:06d}.tar", samples[number :: -(-len(samples) // per_shard)])
            )
        splits[split] = {"shards": shards, "samples": len(samples), "series": count, "subjects": count}
    dataset = {
        "schema": schema.VERSION,
        "digest": schema.dataset_digest(splits),
        "splits": splits,
        "statistics": {"ct": {"mean": 40.0, "std": 60.0, "p0.5": -150.0, "p50": 40.0, "p99.5": 300.0}},
        "labels": {"1": "bright", "2": "dark"},
        "made_with": {},
        **more,
    }
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


def _write_shard(root: Path, name: str, samples: list[schema.Slice]) -> dict:
    path, rows, offset = root / name, [], 0
    with open(path, "wb") as file:
        for sample in samples:
            block = b"".join(schema.tar_block(member, payload) for member, payload in schema.encode(sample))
            file.write(block)
            hashes = schema.short_hash(sample.subject), schema.short_hash(sample.series)
            rows.append((offset, len(block), *hashes, sample.order))
            offset += len(block)
        file.write(schema.TAR_END)
    np.save(schema.index_of(path), np.array(rows, schema.INDEX_DTYPE))
    return {
        "name": name,
        "samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "index_sha256": file_sha256(schema.index_of(path)),
    }
