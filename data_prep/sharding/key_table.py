"""The private key to the hashes of a data set: which patient and which files stand behind them. Never part of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from data_prep.sharding.staging import Job
from meddap.console import show
from meddap.disk import DiskError, flush, temporary_of

STDOUT = Path("-")


def rows(jobs: Sequence[Job]) -> Iterator[dict[str, object]]:
    """Yield a row for every input series.

    source, subject  its hashes in manifest and shards
    patient, name    the patient's id and the series' path below the input
    dicom, files     whether its files are DICOM, and their paths
    channel          its place along the fourth axis of its file and the length of that axis, or null
    orientation      where the axes run ("LAS") of a file whose format does not say it, or ""
    """
    for job in jobs:
        for series in job.source.series:
            yield {
                "source": job.hash_of(series),
                "subject": job.subject,
                "patient": job.source.patient,
                "name": series.name,
                "dicom": series.dicom,
                "channel": series.channel,
                "orientation": series.orientation,
                "files": [os.path.abspath(path) for path in job.paths(series)],
            }


def write(path: Path, jobs: Sequence[Job], output: Path) -> None:
    """Write the rows as JSON lines into a file that only its owner may read, or to standard output (`-`).

    Raises DiskError for a file within `output`, which is the data set and may be given away.
    """
    lines = [json.dumps(row) for row in rows(jobs)]
    if path == STDOUT:
        for line in lines:
            show(line)
        return
    if output.resolve() in path.resolve().parents:
        raise DiskError(f"--key {path}: lies in the data set, which may be given away; put it elsewhere")
    if path.exists() and not path.is_file():
        raise DiskError(f"--key {path}: not a file; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
