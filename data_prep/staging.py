"""The first half of sharding: each series becomes one staged file and one row, whole or not at all.

    OUT/staging/<source>.tar     the samples' stretches, as they will lie in the shards
    OUT/staging/<source>.json    the manifest's row, where the samples lie in the .tar, the body's histogram

The row is renamed into place after the samples. A series whose row is there, made from the same
input, is not read again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from data_prep import dicom, labelmaps, nifti, schema, slicing
from data_prep.config import CtConfig
from data_prep.disk import flush, temporary_of, write_atomic
from data_prep.identity import hashed, split_of
from data_prep.sources import Source
from data_prep.volume import RejectedSeries, Volume


@dataclass(frozen=True)
class Job:
    """One series to convert: what a worker process needs."""

    source: Source
    folder: Path
    salt: bytes
    config: CtConfig


def name_of(source: Source, salt: bytes) -> str:
    """Salted hash of where the series was found: its name among the staged files and in the manifest."""
    return hashed(salt, "source", f"{source.name}\0{source.series}")


def read_row(folder: Path, name: str, fingerprint: str) -> dict | None:
    """The staged row of a series, or None where it is not there or was made from another input."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    row = json.loads(path.read_text())
    return row if row["manifest"]["fingerprint"] == fingerprint else None


def convert(job: Job) -> dict:
    """Stage one series; returns its row. A series that cannot be used has a row with the reason."""
    source, name = job.source, name_of(job.source, job.salt)
    identity = {
        "source": name,
        "subject": hashed(job.salt, "patient", source.patient),
        "series": hashed(job.salt, "series", source.series),
        "fingerprint": source.fingerprint,
        "kind": source.kind,
    }
    try:
        if source.problem:
            raise RejectedSeries(source.problem)
        row = _stage(job, name, identity)
    except (RejectedSeries, PermissionError) as error:
        reason = error.reason if isinstance(error, RejectedSeries) else "a file cannot be read (permission denied)"
        row = {"manifest": {**identity, "status": "rejected", "reason": reason}, "samples": [], "histogram": {}}
    write_atomic(job.folder / f"{name}.json", json.dumps(row, sort_keys=True).encode())
    return row


def read_volume(source: Source, config: CtConfig) -> Volume:
    """The volume of a series. Raises RejectedSeries, PermissionError."""
    if source.kind == "dicom":
        return dicom.read_series(source.files, config)
    volume = nifti.read(source.files[0])
    if len(volume.voxels) < config.min_slices:
        raise RejectedSeries(f"{len(volume.voxels)} slices, fewer than min_slices={config.min_slices}")
    return volume


def _stage(job: Job, name: str, identity: dict) -> dict:
    volume = read_volume(job.source, job.config)
    labelmap = labelmaps.read_onto(job.source.labelmap, volume) if job.source.labelmap else None
    tally, samples, offset = slicing.Tally(), [], 0
    temporary = temporary_of(job.folder / f"{name}.tar")
    with open(temporary, "wb") as file:
        slices = slicing.axial(
            volume, labelmap, subject=identity["subject"], series=identity["series"], air=job.config.air, tally=tally
        )
        for sample in slices:
            stretch = b"".join(schema.tar_block(member, payload) for member, payload in schema.encode(sample))
            file.write(stretch)
            samples.append([sample.key, offset, len(stretch), sample.order])
            offset += len(stretch)
    if not samples:
        os.unlink(temporary)
        raise RejectedSeries("no slice holds a body: all voxels are air")
    flush(temporary)
    os.replace(temporary, job.folder / f"{name}.tar")
    depth, height, width = volume.voxels.shape
    manifest = {
        **identity,
        "status": "accepted",
        "split": split_of(identity["subject"], job.config.split),
        "slices": len(samples),
        "air_slices": tally.air,
        "shape": [depth, height, width],
        "spacing_mm": [round(length, 4) for length in volume.spacing],
        "annotated": slicing.annotated(labelmap),
        "voxels_below_air": tally.below_air,
        "voxels_above_int16": tally.above,
        "voxels_rounded": tally.rounded,
        "meta": volume.meta,
    }
    counts = {str(bin - 1024): int(tally.histogram[bin]) for bin in tally.histogram.nonzero()[0]}
    return {"manifest": manifest, "samples": samples, "histogram": counts}
