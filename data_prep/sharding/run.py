"""From a folder of images to a finished data set, shared by shard_ct.py, shard_mri.py and shard_images.py.

Two halves, each of which continues where a killed start left off: every source is staged by itself
(`staging`), then the shards are assembled from the staged files (`writer`). `dataset.json` comes last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from data_prep import identity, schema
from data_prep.config import MACHINE_KEYS, RANGES, PrepConfig
from data_prep.discovery import archive, class_labels
from data_prep.discovery.inputs import Inputs, apart
from data_prep.sharding import archive_parts, description, key_table, said, staging, warnings, writer
from data_prep.sharding.staging import Job, Record
from data_prep.sharding.warnings import Warnings
from data_prep.workers import LostJob, Workers
from meddap.console import progress, say
from meddap.disk import disk_errors, sole_writer, write_atomic
from meddap.errors import MeddapError
from meddap.ranges import check_ranges
from meddap.records import read_json
from meddap.settings import is_line


class ShardingError(MeddapError):
    """The command cannot go on; one line that says why and what to do."""


# The form (meddap.records) of `settings.json`
_SETTINGS = {"salt_check": str, "modality": str, "settings": dict}


@dataclass(frozen=True)
class Request:
    """One start of a sharding command.

    inputs      folders of images
    masks       folders of label maps laid out like the inputs
    modality    "CT" or "MR"
    convert     turns one source into staged samples, in a worker process
    show_names  whether the console names files: its log is then as private as the names are
    labels      CSV of class labels, or None
    key         file of the private table that says what stands behind the hashes (key_table), or None
    discover    finds the sources
    """

    inputs: Sequence[Path]
    output: Path
    masks: Sequence[Path]
    modality: str
    convert: Callable[[Job], Record]
    config: PrepConfig
    salt: bytes
    show_names: bool = False
    labels: Path | None = None
    key: Path | None = None
    discover: Callable[..., archive.Discovered] = archive.discover


def run(request: Request) -> None:
    """Shard every source below `request.inputs`. Raises MeddapError, among others for a disk that is full."""
    with disk_errors(request.output, "what is staged is kept, start again to continue"):
        _run(request)


def _run(request: Request) -> None:
    config = request.config
    check_ranges("", config, RANGES)
    folders = Inputs.of(request.inputs)
    apart(list(request.masks), "--masks")
    _check_places(request)
    _check_license(config)
    _check_shares(config)
    if strange := [value for value in config.labels if not value.isdecimal()]:
        raise ShardingError(f"labels.{strange[0]}={config.labels[strange[0]]}: give labels.VALUE=NAME")
    labels = class_labels.read(request.labels, config.label_columns) if request.labels else class_labels.Labels()
    part = archive_parts.parse(config.part)
    _check_division(request.output, part)
    output = request.output / part.folder
    preload = [archive.__name__, request.convert.__module__]
    pool = Workers(config.workers, config.limits.minutes * 60, config.limits.volume_gb, preload)
    with sole_writer(output), pool as workers:
        began = time.monotonic()
        made_with = _made_with(request)
        _check_settings(output, made_with)
        finished = _finished(output, request.show_names)
        inputs = request.discover(folders, request.masks, config, request.modality, workers, skip=request.output)
        if not inputs.sources:
            where = ", ".join(map(str, request.inputs))
            raise ShardingError(f"{where}: holds no image and no DICOM file ({inputs.ignored} others)")
        _check_masks(request, inputs)
        warned = Warnings(config.strict)
        decided = said.found(inputs, bool(request.masks), request.show_names)
        warned.add([*decided, *inputs.warnings, *_of_split(request, inputs.sources)])
        if not (output / "settings.json").is_file():  # an error so far leaves the output free for other settings
            write_atomic(output / "settings.json", (json.dumps(made_with, indent=1, sort_keys=True) + "\n").encode())
        config = replace(config, labels={**inputs.labels, **config.labels})
        made_with["found"] = _found(inputs)
        if request.labels and config.unknown_labels == "refuse":
            labels.check_known(request.labels, inputs.sources)
        labels = class_labels.with_own(labels, inputs.sources)
        staged = output / "staging"
        jobs = [Job(one, folders, staged, request.salt, config, labels.of(one)) for one in inputs.sources]
        jobs = [job for job in jobs if part.takes(job.subject)]
        if request.key:
            key_table.write(request.key, jobs, request.output)
        fingerprint = hashlib.sha256("".join(sorted(job.source.fingerprint for job in jobs)).encode()).hexdigest()
        if finished:
            return _finished_before(output, *finished, fingerprint, jobs)
        records = stage_all(jobs, request, workers)
        if not any(record.samples for record in records.values()) and part.count == 1:
            raise ShardingError(f"{output}: none of {len(jobs)} inputs could be used; the reasons are above")
        if part.count == 1:  # a part alone may well lack patients of a split
            own = any(source.split for source in inputs.sources)
            warned.add(warnings.of_records(records.values(), config.split, own))
        named = replace(config, labels={**inputs.organ_files.names, **config.labels})
        if inputs.labels:
            warned.add(warnings.of_label_values(records.values(), named.labels))
        made_with["inputs"] = fingerprint
        write_output(output, records, named, labels.names, made_with, warned.lines, workers)
        said.summarise(records, inputs.ignored, time.monotonic() - began, labels.names)


def _found(inputs: archive.Discovered) -> dict:
    """Return what discovery decided, for `dataset.json`."""
    rule, count = inputs.patients
    return {"layouts": inputs.layouts, "labels": inputs.labels, "patients": rule.said(False) if count else ""}


def _of_split(request: Request, sources: Sequence[archive.Source]) -> list[str]:
    """Return warnings of splits that the patients leave empty, whatever becomes of their images."""
    named = {source.patient: source.split for source in sources if not source.problem}
    hashes = {identity.hashed(request.salt, "patient", patient): split for patient, split in named.items()}
    shares = request.config.split
    splits = {subject: split or identity.split_of(subject, shares) for subject, split in hashes.items()}
    return warnings.of_split(splits, shares, own=any(named.values()))


def stage_all(jobs: list[Job], request: Request, workers: Workers) -> dict[str, Record]:
    """Return the records of all jobs by name, staging what is not staged yet; print rejections as they happen."""
    (jobs[0].folder if jobs else request.output).mkdir(parents=True, exist_ok=True)
    records: dict[str, Record] = {}
    left: list[Job] = []
    for job in jobs:
        record = staging.read_record(job)
        if record is None:
            left.append(job)
        else:
            records[job.name] = record
    if records:
        say(f"{len(records)} of {len(jobs)} inputs were staged before")
    for job, result in progress(workers.map(partial(staging.guarded, request.convert), left), len(left), "inputs"):
        record = staging.lost(job, result.reason) if isinstance(result, LostJob) else result
        records[job.name] = record
        said.rows_of(record.rows, said.names_of([job]) if request.show_names else {})
    return records


def write_output(
    output: Path,
    records: dict[str, Record],
    config: PrepConfig,
    names: dict[str, tuple[str, ...]],
    made_with: dict,
    warned: list[str],
    workers: Workers,
) -> None:
    """Write the shards and their description, then remove the staged files."""
    plans = writer.plan_shards(output, output / "staging", records.items(), config.samples_per_shard)
    for split in schema.SPLITS:  # shards of a start that was killed after other inputs
        shutil.rmtree(output / split, ignore_errors=True)
    written: dict[str, list[dict]] = {split: [] for split in schema.SPLITS}
    for plan, row in progress(workers.map(writer.write_shard, plans), len(plans), "shards"):
        if isinstance(row, LostJob):
            raise ShardingError(f"{output / plan.name}: {row.reason}; start again to continue")
        written[plan.name.partition("/")[0]].append(row)
    for rows in written.values():
        rows.sort(key=lambda row: row["name"])
    manifest = [row for record in records.values() for row in record.rows]
    histograms = description.total_of(record.histograms for record in records.values() if record.split == "train")
    classes = description.classes(records.values(), names)
    dataset = description.describe(written, manifest, histograms, config.labels, classes, made_with, warned)
    description.write(output, dataset, manifest, histograms)
    shutil.rmtree(output / "staging", ignore_errors=True)


def _check_masks(request: Request, inputs: archive.Discovered) -> None:
    """Raise ShardingError for masks that match nothing."""
    mapped, count = inputs.mapped
    if request.masks and not mapped and count:
        trees = ", ".join(map(str, request.masks))
        raise ShardingError(f"--masks {trees}: none of {count} images has a label map there; lay it out like --input")


def _check_places(request: Request) -> None:
    """Raise ShardingError for an output that is or holds an input, and for masks that are the input."""
    inputs = {path.resolve(): path for path in request.inputs}
    output = request.output.resolve()
    for place, path in inputs.items():
        if output == place or output in place.parents:
            what = "is" if output == place else "holds"
            raise ShardingError(
                f"--output {request.output}: {what} the --input {path}; name another folder for the shards"
            )
    for masks in request.masks:
        if masks.resolve() in inputs:
            raise ShardingError(f"--masks {masks}: is the --input; label maps beside their images are found without it")


def _check_license(config: PrepConfig) -> None:
    """Raise ShardingError for a licence that is not one line of text: it is written into model cards."""
    if config.license is not None and not is_line(config.license):
        raise ShardingError(f"license={config.license!r}: give its name in one line, e.g. license=CC-BY-4.0")


def _check_shares(config: PrepConfig) -> None:
    shares = asdict(config.split)
    if not any(shares.values()):
        raise ShardingError(f"split={shares}: some share must be above 0")


def _check_division(output: Path, part: archive_parts.ArchivePart) -> None:
    """Raise ShardingError unless an output holds one division only: whole, or parts of one count."""
    if part.count == 1 and archive_parts.folders(output):
        raise ShardingError(f"{output}: holds parts; give part=NUMBER/COUNT or another --output")
    if part.count > 1 and (output / "settings.json").is_file():
        raise ShardingError(f"{output}: was begun without parts; give another --output")


def _made_with(request: Request) -> dict:
    """Return what decides the output: the settings, and a check of the salt (not the salt)."""
    left_out = (*MACHINE_KEYS, "part")
    text = request.labels.read_text("utf-8-sig") if request.labels else ""
    settings = {key: value for key, value in asdict(request.config).items() if key not in left_out}
    return {
        "modality": request.modality,
        "settings": settings,
        "salt_check": identity.hashed(request.salt, "check", "")[:8],
        "labels": identity.hashed(request.salt, "labels", text) if text else "",
        "schema": schema.VERSION,
    }


def _check_settings(output: Path, made_with: dict) -> None:
    path = output / "settings.json"
    if not path.is_file():
        return
    before = read_json(path, _SETTINGS, "give another --output, or remove this one and start again", ShardingError)
    if before["salt_check"] != made_with["salt_check"]:
        raise ShardingError(f"{output}: was begun with another salt; give that salt or another --output")
    if before.get("modality") != made_with["modality"]:
        raise ShardingError(f"{output}: was begun with {before.get('modality')}; name another --output")
    if before.get("labels", "") != made_with["labels"]:
        raise ShardingError(f"{output}: was begun with other --labels; give the CSV of then or another --output")
    was, now = before["settings"], made_with["settings"]
    for key in now:
        if was.get(key) != now[key]:
            raise ShardingError(f"{output}: was begun with {key}={was.get(key)}, now {now[key]}; name another --output")


def _finished(output: Path, show_names: bool) -> tuple[dict, list[dict]] | None:
    """Return description and, for `show_names`, manifest of a finished data set: damage is said before a long walk."""
    if not (output / "dataset.json").is_file():
        return None
    dataset = schema.read_dataset(output)
    return dataset, description.read_manifest(output, dataset) if show_names else []


def _finished_before(output: Path, dataset: dict, manifest: list[dict], fingerprint: str, jobs: list[Job]) -> None:
    if dataset["made_with"].get("inputs") != fingerprint:
        raise ShardingError(f"{output}: is finished, but the input has changed since; name another --output")
    shutil.rmtree(output / "staging", ignore_errors=True)
    if manifest:
        said.rows_of(manifest, said.names_of(jobs))
    samples = sum(part["samples"] for part in dataset["splits"].values())
    say(f"{output}: finished before, {samples} slices")
