"""Options of the commands that take new images, raw or in shards; names in place of hashes; how such commands end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.schema import read_dataset
from eval.config import EmbedConfig, PredictConfig
from eval.data import files
from eval.intake import raw
from eval.intake.preparation import Preparation
from eval.intake.raw import CommandFailed, Intake
from meddap import __version__, console
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError

_SPEED = ("workers", "batch_size")  # settings that change no result
LEFT_OUT = 4  # exit status: done, but some inputs were left out


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name images and what becomes of ids."""
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input", type=Path, metavar="DIR", action="append", help="folder of raw DICOM or image files; several times"
    )
    given.add_argument("--data", type=Path, metavar="SHARDS", help="a finished data set")
    parser.add_argument("--keep-ids", action="store_true", help="write the patients' ids and paths in place of hashes")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of --data with --keep-ids: what sharding --key wrote")
    parser.add_argument("--salt-file", metavar="FILE", help="salt of the hashed ids (default: MEDDAP_SALT)")


def check_ids(options: argparse.Namespace) -> None:
    """Raise SettingsError where ids are to be kept that nobody says."""
    if options.data and options.keep_ids and not options.key:
        raise SettingsError("--keep-ids: shards hold hashes alone; give --key FILE, which sharding wrote")


def taken_in(options: argparse.Namespace, how: Preparation | None, workers: int, work: Path) -> Intake:
    """Return the images that the options name as shards; `how` raw ones are prepared."""
    if how is None:
        return raw.shards(options.data, options.key)
    settings = "the settings of its data set" if how.settings else "default settings"
    console.say(f"raw images are prepared as {how.modality or how.source} by {settings}")
    return raw.prepare(options.input, how, work, options.salt_file, workers, options.keep_ids)


def originals(intake: Intake, subjects: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return hash → id of every patient that the key names, and hash → path of every series.

    subjects  hashes of the patients that there are. Raises SettingsError for a key of another data set.
    """
    patients = intake.names.patients
    if missing := set(subjects) - set(patients):
        raise SettingsError(f"--key: does not name {len(missing)} patients of these shards; give theirs")
    return patients, {stack: intake.name_of(rows[0]["source"]) for stack, rows in intake.series.items()}


def named(columns: Mapping[str, np.ndarray], intake: Intake) -> dict[str, np.ndarray]:
    """Return columns with the patients' ids and the series' paths in place of hashes. Raises SettingsError."""
    patients, series = originals(intake, columns["patient"].tolist())
    found = dict(columns)
    for name, table in (("patient", patients), ("series", series)):
        if name in found:
            found[name] = np.array([_of(table, each) for each in found[name]])
    return found


def _of(table: Mapping[str, str], name: str) -> str:
    if name not in table:
        raise SettingsError("--keep-ids: these shards have no manifest that names their series; leave it out")
    return table[name]


def left_out(intake: Intake, keep_ids: bool) -> list[dict[str, str]]:
    """Return what did not become slices, and why; named by its path where ids are kept."""
    rows = [
        {"source": intake.name_of(row["source"]) if keep_ids else row["source"], "reason": row.get("reason", "")}
        for row in intake.left_out
    ]
    return sorted(rows, key=lambda row: (row["source"], row["reason"]))


def say_left_out(count: int) -> int:
    """Return the exit status for a number of inputs without a result: LEFT_OUT, in words too, if there are any."""
    if not count:
        return 0
    console.say(f"{count} inputs were left out; the reasons are in the output (exit status {LEFT_OUT})")
    return LEFT_OUT


def ended(output: Path, work: Callable[[], int]) -> int:
    """Return the exit status of `work`; that of the sharding command where it ended with an error of its own."""
    try:
        with files.output_errors(output):
            return work()
    except CommandFailed as failed:
        return failed.status


def made_with(options: argparse.Namespace, config: EmbedConfig | PredictConfig) -> dict[str, Any]:
    """Return how an output is made, as far as options and settings say it before the images are read."""
    settings = {name: value for name, value in asdict(config).items() if name not in _SPEED}
    data = {"data": read_dataset(options.data)["digest"]} if options.data else {}
    ids = "kept" if options.keep_ids else "hashed"
    return {"ids": ids, **settings, **data, "made_by": f"meddap {__version__}"}


def compare(output: Path, before: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raise SettingsError where an output was made, or begun, otherwise than it would be now."""
    for name, value in json.loads(json.dumps(made)).items():
        if before.get(name) != value:
            was = before.get(name)
            raise SettingsError(f"{output}: was made with {name}={was}, now {value}; name another --output")


def begin(output: Path, work: Path, made: Mapping[str, Any]) -> None:
    """Record how an output is made. Raises SettingsError where a start that was killed made it otherwise."""
    path = work / "made.json"
    if path.is_file():
        compare(output, read_json(path, dict, f"remove {work}", SettingsError), made)
    write_atomic(path, json.dumps(made).encode())


def work_folder(output: Path) -> Path:
    """Return the folder for what is temporary: inside of an output that is a folder, else beside it."""
    return output.with_name(f"{output.name}.work") if output.suffix else output / ".work"
