"""Predictions for new patients, by a head that a probe kept.

    python -m eval.predict --checkpoint RUN --head PROBE/logistic --input DIR --output FOLDER

Writes FOLDER/predictions.csv, a row per slice or series: probabilities, values or a log hazard; of a head that draws, a
row per series with volumes in ml, and FOLDER/segmentations/SERIES.nii.gz on the grid of the source.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.schema import read_dataset
from eval import ranges
from eval.config import PredictConfig
from eval.data import files
from eval.data.examples import Examples, ends
from eval.encoders import encoder
from eval.intake import grids, unlabelled
from eval.intake.command import (
    LEFT_OUT,
    add_inputs,
    begin,
    check_ids,
    compare,
    ended,
    left_out,
    made_with,
    originals,
    say_left_out,
    taken_in,
)
from eval.intake.grids import Placed
from eval.intake.preparation import SHARDS, Preparation
from eval.intake.raw import Intake
from eval.kept import apply, head
from eval.kept.apply import Applied, DrawnSeries
from eval.kept.head import StoredHead
from eval.reporting import dicom_seg, drawn
from meddap import console
from meddap.disk import sole_writer, write_atomic
from meddap.errors import MeddapError
from meddap.ranges import check_ranges
from meddap.records import read_json
from meddap.settings import SettingsError, load

PREDICTED, OUT, REFUSED, FAILED = "predicted", "left out", "refused", "failed"


def predict(options: argparse.Namespace, config: PredictConfig) -> int:
    """Write the predictions that the options ask for; return the exit status. Raises MeddapError."""
    check_ranges("", config, ranges.PREDICT)
    check_ids(options)
    stored = head.read(options.head)
    task = replace(stored.head.task, batch_size=config.batch_size)
    frozen = encoder.load(options.checkpoint, task)
    work, output = options.output / ".work", options.output
    applied = Applied(stored, stored.fitted(frozen, work / "patient"), frozen, task, work / "patient")
    _check_drawing(options, applied)
    made = _made(options, config, applied)
    if _finished(output, made):
        return 0
    with sole_writer(work):
        begin(output, work, made)
        how = Preparation(**stored.head.prepared) if options.input else None
        intake = taken_in(options, how, config.workers, work)
        measured = task.stride.test if task.source in SHARDS else task.files.plane_stride
        stride = config.stride or (1 if applied.draws else measured)
        examples = unlabelled.load(str(intake.root), work / "slices", stride, config.split)
        count, every = len(ends(examples.subjects)) - 1, f", every {stride}. one" if stride > 1 else ""
        console.say(f"{stored.head.name} on {frozen.source}: {count} patients, {len(examples)} slices{every}")
        seen = {} if options.allow_training_patients else _seen(examples, stored, intake)
        placed = grids.places(intake) if applied.draws else {}
        rows = list(_rows(applied, examples, seen, placed, options, config, work))
        if not any(row["status"] == PREDICTED for row in rows):
            raise SettingsError(f"no patient was predicted: {rows[0]['reason']}")
        table = _table(rows, intake, options)
        write_atomic(output / "predictions.csv", table.encode())
        files.write_rows(output / "made.json", [{**made, "rows": len(rows)}])
    shutil.rmtree(work)
    console.say(f"{output / 'predictions.csv'}: {sum(row['status'] == PREDICTED for row in rows)} predictions")
    without = {row["patient"] for row in rows if row["status"] in (REFUSED, FAILED)}
    rejected = {row["source"] for row in intake.left_out} if options.input else set()
    return say_left_out(len(without) + len(rejected))


def _rows(
    applied: Applied,
    examples: Examples,
    seen: Mapping[str, str],
    placed: Mapping[str, Placed],
    options: argparse.Namespace,
    config: PredictConfig,
    work: Path,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all patients; those of a patient that was finished before are read again."""
    patients = ends(examples.subjects)
    bounds = list(zip(patients[:-1], patients[1:]))
    for start, stop in console.progress(bounds, len(bounds), "patients"):
        subject = str(examples.subjects[start])
        if subject in seen:
            yield {"patient": subject, "status": REFUSED, "reason": seen[subject]}
            continue
        path = work / f"rows-{examples.version[:16]}" / f"{subject}.json"
        if not path.is_file():
            mine = examples.take(np.arange(start, stop))
            rows = _patient(applied, mine, placed, options, config)
            write_atomic(path, json.dumps(rows).encode())
            applied.forget()
        yield from read_json(path, [dict], "delete it and start again")


def _patient(
    applied: Applied,
    examples: Examples,
    placed: Mapping[str, Placed],
    options: argparse.Namespace,
    config: PredictConfig,
) -> list[dict[str, Any]]:
    """Return the rows of a patient; one that says why, where that cannot be."""
    try:
        cohort = applied.cohort(examples)
        if not applied.draws:
            return [{**row, "status": PREDICTED, "reason": ""} for row in apply.scores(applied, cohort)]
        return [_write_drawn(applied, each, placed, options, config) for each in apply.drawn(applied, cohort)]
    except MeddapError as error:  # one patient whose slices are damaged, say, does not stop the others
        reason = str(error)
        console.say(f"failed: {examples.subjects[0][:12]}: {reason}")
        return [{"patient": str(examples.subjects[0]), "status": FAILED, "reason": reason}]


def _write_drawn(
    applied: Applied,
    found: DrawnSeries,
    placed: Mapping[str, Placed],
    options: argparse.Namespace,
    config: PredictConfig,
) -> dict[str, Any]:
    """Write what was drawn in a series; return its row: volumes in ml, and voxels that two structures claim."""
    mine, folder = applied.stored.head, options.output / "segmentations"
    row: dict[str, Any] = {"patient": found.subject, "series": found.series, "status": PREDICTED, "reason": ""}
    if found.series not in placed:
        raise SettingsError("its data set does not say where its slices lie; shard again, or give --input")
    place = placed[found.series]
    row["overlapping voxels"] = int(sum((each.sum(axis=0) > 1).sum() for each in found.masks.values()))
    if config.maps == "labels":
        file = folder / f"{found.series}.nii.gz"
        row["file"] = f"segmentations/{file.name}"
        labels = drawn.write_labels(file, place, found.beyond, mine.values)
        for name, value in zip(mine.names, mine.values):
            row[f"{name} ml"] = drawn.volume_ml(labels == value, place.source.affine)
    else:
        row["file"] = f"segmentations/{found.series}"
        for number, (name, value) in enumerate(zip(mine.names, mine.values)):
            mask = place.drawn({order: each[number].astype(np.uint8) for order, each in found.masks.items()})
            drawn.write_nifti(folder / found.series / f"{value}.nii.gz", mask, place.source.affine)
            row[f"{name} ml"] = drawn.volume_ml(mask, place.source.affine)
    if options.dicom_seg:
        words = mine.names, mine.values, mine.name
        row["reason"] = dicom_seg.write(folder / f"{found.series}.dcm", place, found.masks, *words)
    return row


def _seen(examples: Examples, stored: StoredHead, intake: Intake) -> dict[str, str]:
    """Return why patients are refused: those that the head was fitted on or chosen by, by id or by pixels."""
    mine = stored.head
    check = mine.prepared.get("salt_check", "")
    if not mine.training or (check and check != read_dataset(intake.root)["made_with"].get("salt_check")):
        console.say("patients are compared with those of the training by their pixels alone: no common ids")
    elsewhere = "was fitted on or chosen by; --allow-training-patients predicts it"
    patients = examples.subjects[ends(examples.subjects)[:-1]]
    known = patients[np.isin(patients, mine.training)]
    found = {str(each): f"its id is among those that the head {elsewhere}" for each in known}
    for subject in np.unique(examples.subjects[np.isin(examples.digests, stored.digests)]):
        found.setdefault(str(subject), f"slices of it have the very pixels that the head {elsewhere}")
    return found


def _table(rows: list[dict[str, Any]], intake: Intake, options: argparse.Namespace) -> str:
    """Return the CSV: predictions, then what was left out before."""
    if options.keep_ids:
        patients, series = originals(intake, {row["patient"] for row in rows})
        rows = [{**row, "patient": patients[row["patient"]]} for row in rows]
        rows = [{**row, "series": series.get(row["series"], "")} if "series" in row else row for row in rows]
    if options.input:
        rows = rows + [
            {"series": row["source"], "status": OUT, "reason": row["reason"]}
            for row in left_out(intake, options.keep_ids)
        ]
    met = dict.fromkeys(name for row in rows for name in row)
    titles = [name for name in apply.FIRST if name in met] + [name for name in met if name not in apply.FIRST]
    memory = io.StringIO()
    writer = csv.DictWriter(memory, titles, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return memory.getvalue()


def _check_drawing(options: argparse.Namespace, applied: Applied) -> None:
    """Raise SettingsError for a DICOM segmentation that cannot be written."""
    if not options.dicom_seg:
        return
    if not applied.draws:
        raise SettingsError(f"--dicom-seg: {applied.stored.head.name} draws nothing; leave it out")
    if not options.keep_ids or not options.input:
        raise SettingsError("--dicom-seg: names the patient as its source images do; give --input and --keep-ids too")
    dicom_seg.check()


def _made(options: argparse.Namespace, config: PredictConfig, applied: Applied) -> dict[str, Any]:
    """Return how the predictions are made, as far as it is known before the images are read."""
    mine = applied.stored.head
    return {
        "head": mine.name,
        "head_sha256": applied.stored.sha256,
        "task": mine.task.name,
        "kind": mine.task.kind,
        "labels": dict(zip(mine.names, mine.values or range(len(mine.names)))),
        "encoder": mine.encoder,
        "training_patients": "allowed" if options.allow_training_patients else "refused",
        **made_with(options, config),
    }


def _finished(output: Path, made: Mapping[str, Any]) -> bool:
    """Return whether the predictions are there. Raises SettingsError if they were made otherwise."""
    path = output / "made.json"
    if not path.is_file():
        return False
    before = read_json(path, {"rows": int}, "name another --output", SettingsError)
    compare(output, before, made)
    console.say(f"{output}: finished before, {before['rows']} rows; the images were not looked at again")
    return True


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Predict for new patients with a head that meddap probe kept: a CSV, and label maps of a head that draws. "
        "Raw images are prepared as those of the head's data set. A second start continues.",
        f"Exit status {LEFT_OUT}: done, but some inputs have no prediction; their rows say why. Keys: stride, split, "
        "maps=labels|each, workers, batch_size (PredictConfig in eval/config.py).",
    )
    parser.add_argument("--checkpoint", required=True, metavar="WHAT", help="the encoder that was probed")
    parser.add_argument("--head", required=True, type=Path, metavar="PROBE/NAME", help="a head of a probe's output")
    add_inputs(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for predictions.csv and maps")
    parser.add_argument(
        "--allow-training-patients", action="store_true", help="predict also those that the head was fitted on"
    )
    parser.add_argument(
        "--dicom-seg", action="store_true", help="DICOM segmentations too (pip install 'meddap[seg]'); needs --keep-ids"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. split=test")
    options = parser.parse_intermixed_args(arguments)
    return ended(options.output, lambda: predict(options, load(PredictConfig, None, options.overrides)))


if __name__ == "__main__":
    console.launch(main)
