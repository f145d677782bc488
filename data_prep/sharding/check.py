"""A check of one shard, which is read again from its first byte to its last."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from meddap.disk import file_sha256

_MOST = 20  # problems of one shard that are printed


@dataclass(frozen=True)
class ShardCheck:
    """A shard to check, its row in `dataset.json` and the label values that are `ignored` there."""

    path: Path
    row: dict[str, Any]
    ignored: tuple[int, ...] = ()


@dataclass
class ShardReport:
    """The outcome for one shard: what its samples hold, and every problem as a line without the shard's name.

    keys      (N,) uint64, the first eight bytes of each key's SHA-256
    channels  sequence → the most channels that a sample has of it
    classes   (column, class) → samples
    """

    samples: int = 0
    subjects: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    series: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    channels: dict[str, int] = field(default_factory=dict)
    classes: Counter[tuple[str, float]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def check_shard(work: ShardCheck) -> ShardReport:
    """Check sums, counts and the tar's own headers; decode every sample and compare it with its row of the index."""
    report = ShardReport()
    try:
        _check(work, report)
    except (OSError, tarfile.TarError, *schema.UNDECODABLE) as error:
        report.problems.append(_line(error))
    if len(report.problems) > _MOST:
        report.problems[_MOST:] = [f"and {len(report.problems) - _MOST} more"]
    return report


def _check(work: ShardCheck, report: ShardReport) -> None:
    if not work.path.is_file():
        report.problems.append("is missing; copy it again or shard again")
        return
    size = work.path.stat().st_size
    if size != work.row["bytes"]:
        report.problems.append(f"has {size} bytes, dataset.json says {work.row['bytes']}; copy it again")
    if file_sha256(work.path) != work.row["sha256"]:
        report.problems.append("its SHA-256 is not that of dataset.json: it was damaged or replaced; copy it again")
    index = _index(work, report)
    members = _members(work.path, report)
    if index is None:
        return
    content = _content(work, len(index), report)
    report.samples = len(index)
    report.subjects, report.series = index["subject"].copy(), index["series"].copy()
    report.keys = np.zeros(len(index), np.uint64)
    _check_layout(index, size, members, report)
    with open(work.path, "rb") as file:
        for number, row in enumerate(index):
            file.seek(int(row["offset"]))
            try:
                sample = schema.decode(file.read(int(row["size"])))
                report.keys[number] = schema.short_hash(schema.text_sha256(sample.key))
                for name in sample.sequences:
                    report.channels[name] = max(report.channels.get(name, 1), sample.channels)
                report.classes.update(sample.labels.items())
                if problem := _disagreement(sample, row, work.ignored):
                    report.problems.append(f"sample {number}: {problem}")
                if content is not None and schema.content_digest(sample.pixels) != int(content[number]):
                    report.problems.append(f"sample {number}: its pixels are not those of its digest")
            except schema.UNDECODABLE as error:
                report.problems.append(f"sample {number}: {_line(error)}")


def _index(work: ShardCheck, report: ShardReport) -> np.ndarray | None:
    path = schema.index_of(work.path)
    if not path.is_file():
        report.problems.append(f"its index {path.name} is missing")
        return None
    index = _array(path, work.row["index_sha256"], schema.INDEX_DTYPE, report)
    if index is not None and len(index) != work.row["samples"]:
        report.problems.append(f"{path.name} has {len(index)} rows, dataset.json says {work.row['samples']} samples")
    return index


def _content(work: ShardCheck, samples: int, report: ShardReport) -> np.ndarray | None:
    """Return the digests of the samples' pixels; None for a data set made before digests were written."""
    if "content_sha256" not in work.row:
        return None
    path = schema.content_of(work.path)
    if not path.is_file():
        report.problems.append(f"its {path.name} is missing; copy it again")
        return None
    content = _array(path, work.row["content_sha256"], np.uint64, report)
    if content is not None and len(content) != samples:
        report.problems.append(f"{path.name} holds {len(content)} digests, expected {samples}")
        return None
    return content


def _array(path: Path, sha256: str, dtype: np.dtype | type, report: ShardReport) -> np.ndarray | None:
    """Return the array in a file beside the shard; None if it is damaged. The report gets what is wrong with it."""
    if file_sha256(path) != sha256:
        report.problems.append(f"the SHA-256 of {path.name} is not that of dataset.json; copy it again")
    try:
        return schema.read_array(path, dtype)
    except schema.SchemaError as error:
        report.problems.append(str(error).replace(str(path), path.name, 1))
        return None


def _members(path: Path, report: ShardReport) -> dict[str, int]:
    """Return every member of the tar and the offset of its header, as Python's own reader sees them."""
    offsets: dict[str, int] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            stem = member.name.partition(".")[0]
            if not member.isreg() or not schema.KEY.fullmatch(stem) or "/" in member.name:
                report.problems.append(f"member {member.name[:60]!r} is not a file of a sample")
            if member.name in offsets:
                report.problems.append(f"member {member.name[:60]!r} comes twice")
            offsets[member.name] = member.offset
    return offsets


def _check_layout(index: np.ndarray, size: int, members: dict[str, int], report: ShardReport) -> None:
    """Report it unless the rows of the index cover the tar without gaps and count its samples."""
    ends = np.cumsum(index["size"], dtype=np.uint64)
    starts = ends - index["size"]
    if not np.array_equal(starts, index["offset"]):
        report.problems.append("its index leaves gaps between samples")
    elif len(index) and int(ends[-1]) + len(schema.TAR_END) != size:
        report.problems.append(f"its index ends at byte {ends[-1]} of {size}")
    inside = {name.partition(".")[0] for name in members}
    if len(inside) != len(index):
        report.problems.append(f"holds {len(inside)} samples, its index {len(index)}")


def _disagreement(sample: schema.Slice, row: np.void, ignored: Sequence[int]) -> str:
    """Return how a sample and its row of the index differ, or which of its values is impossible; "" if all is well."""
    written = schema.short_hash(sample.subject), schema.short_hash(sample.series), sample.order
    if written != (int(row["subject"]), int(row["series"]), int(row["order"])):
        return "its index names another patient, series or slice"
    row0, row1, column0, column1 = sample.box
    height, width = sample.pixels.shape[1:]
    if not (0 <= row0 < row1 <= height and 0 <= column0 < column1 <= width):
        return f"box {sample.box} does not lie in {height}×{width} pixels"
    if min(sample.spacing) <= 0:
        return f"spacing {sample.spacing}"
    if sample.labelmap is not None:
        strange = sorted(set(np.unique(sample.labelmap).tolist()) - {0, *sample.annotated, *ignored})
        if strange:
            return f"label values {strange[:5]} are not among the annotated {list(sample.annotated)[:10]}"
    return ""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"[:200]
