"""The first half of sharding: each source becomes one staged file and one record, whole or not at all.

    OUT/staging/<source>.tar     the samples, byte for byte as they will lie in the shards
    OUT/staging/<source>.json    manifest rows, offsets of the samples in the .tar, histograms of the foreground

The record is renamed into place after the samples. A source that has a record made from the same input is not read
again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_prep import schema
from data_prep.config import PrepConfig
from data_prep.discovery.archive import Source
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.studies import Series
from data_prep.identity import hashed, split_of
from data_prep.volumes.errors import UnreadableError
from data_prep.volumes.volume import RejectedSeries
from meddap.disk import flush, temporary_of, write_atomic
from meddap.records import RecordError, read_json

VERSION = 5  # of staged records; those of another version are made again


@dataclass(frozen=True)
class Job:
    """One source to convert, with all that a worker process needs. `labels`: column → class."""

    source: Source
    inputs: Inputs
    folder: Path
    salt: bytes
    config: PrepConfig
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Salted hash of the source's place: its name among the staged files."""
        return hashed(self.salt, "source", "\0".join(f"{series.name}\0{series.uid}" for series in self.source.series))

    @property
    def subject(self) -> str:
        """Salted hash of the patient."""
        return hashed(self.salt, "patient", self.source.patient)

    def hash_of(self, series: Series) -> str:
        """Return the salted hash of a series' place: its name in the manifest."""
        return hashed(self.salt, "source", f"{series.name}\0{series.uid}")

    def paths(self, series: Series) -> list[str]:
        """Return the files of a series as paths to open."""
        return [self.inputs.path(name) for name in series.files]


@dataclass
class Record:
    """The outcome of one source.

    rows        manifest rows, one per series or stack
    samples     (key, offset, size, series, order, digest of the pixels) of each sample in the staged file
    histograms  sequence → stored value → count of foreground pixels
    labels      column → class, of all samples
    checksum    CRC-32 of a staged file that was not flushed to the disk; −1 for one that was
    version     VERSION when it was written
    """

    subject: str
    split: str
    fingerprint: str
    rows: list[dict] = field(default_factory=list)
    samples: list[list] = field(default_factory=list)
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    checksum: int = -1
    version: int = VERSION


# The form (meddap.records) of a staged record
_FORM = {
    **{"version": int, "fingerprint": str, "subject": str, "split": str, "rows": [dict], "samples": [list]},
    **{"histograms": {...: {...: int}}, "labels": {...: int}, "checksum": int},
}


def read_record(job: Job) -> Record | None:
    """Return the staged record of a source; None if missing, damaged, of another input or of another version."""
    path = job.folder / f"{job.name}.json"
    if not path.is_file():
        return None
    try:
        staged = read_json(path, _FORM, "it is staged again")
    except RecordError:
        return None
    current = staged["version"] == VERSION and staged["fingerprint"] == job.source.fingerprint
    current = current and staged["subject"] == job.subject and staged["labels"] == job.labels
    if not current or set(staged) != set(_FORM):
        return None
    record = Record(**staged)
    return record if record.checksum < 0 or record.checksum == _checksum(path.with_suffix(".tar")) else None


def _checksum(staged: Path) -> int | None:
    """Return the CRC-32 of a staged file; None if it is missing."""
    return zlib.crc32(staged.read_bytes()) if staged.is_file() else None


class Stager:
    """Collects the samples and rows of one source; `finish` puts them into place.

    flushed  whether they are on the disk then. Small sources are not: waiting for the disk takes ten times as long as
             they do, and after a loss of power a checksum says which are to be staged again
    """

    def __init__(self, job: Job, flushed: bool = True) -> None:
        self.job, self._flushed = job, flushed
        subject = job.subject
        split = job.source.split or split_of(subject, job.config.split)
        self.record = Record(subject, split, job.source.fingerprint, labels=job.labels)
        self._tar = job.folder / f"{job.name}.tar"
        self._temporary = temporary_of(self._tar)
        self._file: BinaryIO | None = None
        self._offset = 0

    def series_hash(self, name: str) -> str:
        """Return the salted hash of a series' or study's identifier."""
        return hashed(self.job.salt, "series", name)

    def add(self, samples: Iterable[schema.Slice]) -> int:
        """Write samples to the staged file; return how many."""
        count = 0
        for sample in samples:
            if self._file is None:
                self._file = open(self._temporary, "wb")  # noqa: SIM115 closed by `finish`
            block = b"".join(schema.tar_block(member, payload) for member, payload in schema.encode(sample))
            self._file.write(block)
            if not self._flushed:
                self.record.checksum = zlib.crc32(block, max(self.record.checksum, 0))
            content = schema.content_digest(sample.pixels)
            self.record.samples.append([sample.key, self._offset, len(block), sample.series, sample.order, content])
            self._offset += len(block)
            count += 1
        return count

    def discard(self) -> None:
        """Drop the samples added so far."""
        self.record.samples.clear()
        self._offset, self.record.checksum = 0, -1
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def count(self, histograms: dict[str, dict[str, int]]) -> None:
        """Add histograms of the foreground."""
        for name, counts in histograms.items():
            total = Counter(self.record.histograms.get(name, {}))
            total.update(counts)
            self.record.histograms[name] = dict(total)

    def row(self, series: Series, status: str, **entries: object) -> None:
        """Add a manifest row of `series`."""
        self.record.rows.append(
            {
                "source": self.job.hash_of(series),
                "subject": self.record.subject,
                "series": self.series_hash(series.uid),
                "kind": series.kind,
                **({"layout": self.job.source.layout} if self.job.source.layout else {}),
                "files": len(series.files),
                "fingerprint": self.job.source.fingerprint,
                "status": status,
                **entries,
            }
        )

    def reject(self, series: Series, error: RejectedSeries, **entries: object) -> None:
        """Add a row that says why `series`, or a part of it, was left out."""
        self.row(series, "rejected", reason=error.reason, **entries)

    def accept(self, series: Series, **entries: object) -> None:
        """Add a row of a series that became samples."""
        self.row(series, "accepted", split=self.record.split, labels=self.record.labels, **entries)

    def finish(self) -> Record:
        """Put the staged file, then its record, into place; return the record."""
        if self._file is not None:
            self._file.close()
            if self._flushed:
                flush(self._temporary)
            os.replace(self._temporary, self._tar)
        payload = json.dumps(vars(self.record), sort_keys=True).encode()
        write_atomic(self._tar.with_suffix(".json"), payload, self._flushed)
        return self.record


def guarded(convert: Callable[[Job], Record], job: Job) -> Record:
    """Return `convert(job)`, or the record of a failure: one bad input does not stop the others.

    Raises OSError, which is the output's: readers turn those of the input into UnreadableError.
    """
    try:
        return convert(job)
    except UnreadableError as error:
        return lost(job, error.reason)
    except (OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # one strange file among millions must not end the run
        if type(error).__name__ == "PanicException":  # a decoder in Rust panicked; its type cannot be imported
            return lost(job, "damaged: its decoder crashed")
        return lost(job, f"unexpected error ({type(error).__name__}); please report it")


def lost(job: Job, reason: str) -> Record:
    """Return the record of a source that failed this time. It is not written: the next start tries again."""
    for leftover in job.folder.glob(f".{job.name}.*"):
        leftover.unlink()
    stager = Stager(job)
    for series in job.source.series:
        stager.reject(series, RejectedSeries(reason))
    return stager.record


def refused_before(stager: Stager) -> bool:
    """Return whether discovery already found a reason to leave the source out; if so, add rows that say it."""
    for series in stager.job.source.series:
        if stager.job.source.problem:
            stager.reject(series, RejectedSeries(stager.job.source.problem))
    return bool(stager.job.source.problem)
