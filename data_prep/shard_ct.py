"""CT from a folder of NIfTI volumes and DICOM series to WebDataset shards.

    python data_prep/shard_ct.py --input DIR --output DIR [--masks DIR] [--config FILE] [key=value …]

Two halves, each of which continues where a killed start left off: every series is staged by itself
(`staging`), then the shards are assembled from what is staged (`shards`). `dataset.json` comes last.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder must not shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import hashlib
import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict

from tqdm import tqdm

from data_prep import identity, schema, shards, sources, staging
from data_prep.config import MACHINE_KEYS, CtConfig
from data_prep.disk import BusyError, sole_writer, write_atomic
from data_prep.settings import SettingsError, load


class ShardingError(RuntimeError):
    """The command cannot go on; one line that says why and what to do."""


def run(root: Path, output: Path, masks: Path | None, config: CtConfig, salt: bytes) -> None:
    """Shard every CT series below `root` into `output`. Raises ShardingError, OSError."""
    for folder in (root, masks):
        if folder is not None and not folder.is_dir():
            raise ShardingError(f"{folder}: no such folder; name the folder that holds the images")
    _check_shares(config)
    with sole_writer(output):
        began = time.monotonic()
        made_with = _made_with(config, salt)
        _check_settings(output, made_with)
        found = sources.discover(root, masks, config.patient_from)
        if not found.sources:
            raise ShardingError(f"{root}: holds no NIfTI and no DICOM file ({found.ignored} others)")
        inputs = _inputs_digest(found.sources)
        if (output / "dataset.json").is_file():
            return _finished_before(output, inputs)
        rows = stage_all(found.sources, output, config, salt)
        write_output(output, rows, config, {**made_with, "inputs": inputs})
        summarise(rows, found.ignored, time.monotonic() - began)


def stage_all(found: list[sources.Source], output: Path, config: CtConfig, salt: bytes) -> list[dict]:
    """Rows of all series, staging those that are not staged yet; rejections are told as they happen."""
    folder = output / "staging"
    folder.mkdir(exist_ok=True)
    rows, jobs, names = [], [], {}
    for source in found:
        name = staging.name_of(source, salt)
        names[name] = source.name
        row = staging.read_row(folder, name, source.fingerprint)
        if row is None:
            jobs.append(staging.Job(source, folder, salt, config))
        else:
            rows.append(row)
    if rows:
        say(f"{len(rows)} of {len(found)} series were staged before")
    for row in in_processes(staging.convert, jobs, config.workers, "series"):
        rows.append(row)
        if row["manifest"]["status"] == "rejected":
            say(f"left out: {names[row['manifest']['source']]}: {row['manifest']['reason']}")
    if not any(row["samples"] for row in rows):
        raise ShardingError(f"{output}: none of {len(rows)} series could be used; the reasons are above")
    return rows


def write_output(output: Path, rows: list[dict], config: CtConfig, made_with: dict) -> None:
    """Shards, manifest, then `dataset.json`; the staged files go last."""
    plans = shards.plan(output, output / "staging", rows, config.samples_per_shard)
    for split in schema.SPLITS:  # shards of a start that was killed after other inputs
        shutil.rmtree(output / split, ignore_errors=True)
    written = list(in_processes(shards.write, plans, config.workers, "shards"))
    written.sort(key=lambda row: row["name"])
    write_atomic(output / "manifest.jsonl", shards.manifest_bytes(rows))
    dataset = shards.describe(written, rows, config.labels, made_with)
    write_atomic(output / "dataset.json", (json.dumps(dataset, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(output / "staging")


def in_processes(work: Callable, jobs: list, workers: int, unit: str) -> Iterator[dict]:
    """Results of `work` on every job as they come, with progress on the console."""
    with Progress(len(jobs), unit) as progress:
        if workers <= 1 or len(jobs) < 2:
            for job in jobs:
                yield work(job)
                progress.advance()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            try:
                for done in as_completed([pool.submit(work, job) for job in jobs]):
                    yield done.result()
                    progress.advance()
            except BrokenProcessPool as error:
                raise ShardingError(
                    "a worker process was killed (out of memory?); start again with fewer workers="
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


class Progress:
    """A bar on a terminal, a line every so often in a log."""

    def __init__(self, total: int, unit: str, seconds: float = 15.0) -> None:
        self.bar = tqdm(total=total, unit=f" {unit}", disable=not sys.stderr.isatty() or not total)
        self.total, self.unit, self.seconds = total, unit, seconds
        self.done, self.told = 0, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        self.done += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.told > self.seconds:
            say(f"{self.done} of {self.total} {self.unit}")
            self.told = time.monotonic()


def summarise(rows: list[dict], ignored: int, seconds: float) -> None:
    """What became of the inputs, on the console."""
    manifests = [row["manifest"] for row in rows]
    accepted = [manifest for manifest in manifests if manifest["status"] == "accepted"]
    slices = sum(manifest["slices"] for manifest in accepted)
    say(f"{len(accepted)} series accepted, {len(rows) - len(accepted)} left out, {ignored} other files ignored")
    for reason, count in Counter(m["reason"] for m in manifests if m["status"] == "rejected").most_common():
        say(f"  {count} × {reason}")
    for split in schema.SPLITS:
        mine = [manifest for manifest in accepted if manifest["split"] == split]
        patients = len({manifest["subject"] for manifest in mine})
        say(f"  {split}: {sum(m['slices'] for m in mine)} slices of {patients} patients")
    say(
        f"{slices} slices in {seconds:.0f} s ({slices / max(seconds, 1e-9):.0f} a second), "
        f"{sum(manifest['air_slices'] for manifest in accepted)} of air left out"
    )


def say(line: str) -> None:
    """A line on the console that does not tear the bar."""
    tqdm.write(line, file=sys.stderr)


def _check_shares(config: CtConfig) -> None:
    shares = asdict(config.split)
    if min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ShardingError(f"split={shares}: shares must not be negative and some must be above 0")
    if config.patient_from not in ("first_folder", "parent_folder", "file"):
        raise ShardingError(f"patient_from={config.patient_from}: use first_folder, parent_folder or file")


def _made_with(config: CtConfig, salt: bytes) -> dict:
    """What decides the output: the settings, and whether the salt is the same (not the salt)."""
    settings = {key: value for key, value in asdict(config).items() if key not in MACHINE_KEYS}
    return {"settings": settings, "salt_check": identity.hashed(salt, "check", "")[:8], "schema": schema.VERSION}


def _check_settings(output: Path, made_with: dict) -> None:
    path = output / "settings.json"
    if not path.is_file():
        write_atomic(path, (json.dumps(made_with, indent=1, sort_keys=True) + "\n").encode())
        return
    before = json.loads(path.read_text())
    if before["salt_check"] != made_with["salt_check"]:
        raise ShardingError(f"{output}: was begun with another salt; give that salt or another --output")
    was, now = before["settings"], made_with["settings"]
    for key in now:
        if was.get(key) != now[key]:
            raise ShardingError(f"{output}: was begun with {key}={was.get(key)}, now {now[key]}; name another --output")


def _inputs_digest(found: list[sources.Source]) -> str:
    return hashlib.sha256("".join(sorted(source.fingerprint for source in found)).encode()).hexdigest()


def _finished_before(output: Path, inputs: str) -> None:
    dataset = schema.read_dataset(output)
    if dataset["made_with"]["inputs"] != inputs:
        raise ShardingError(f"{output}: is finished, but the input has changed since; name another --output")
    shutil.rmtree(output / "staging", ignore_errors=True)
    say(
        f"{output}: finished before, {sum(part['samples'] for part in dataset['splits'].values())} slices"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="shard_ct.py",
        description="Turn CT series (NIfTI, DICOM) into WebDataset shards.",
        epilog="A second start continues. Keys: workers, samples_per_shard, split.train, air.threshold_hu, min_slices, "
        "patient_from, labels.1 … (data_prep/config.py lists them all).",
    )
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of images; seg.nii.gz beside a volume is its label map",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the shards")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="label maps in a tree of their own, laid out like the input"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with the keys below")
    parser.add_argument(
        "--salt-file", metavar="FILE", help=f"salt of the hashed ids; else the environment's {identity.VARIABLE}"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load(CtConfig, options.config, options.overrides)
        run(options.input, options.output, options.masks, config, identity.read_salt(options.salt_file))
    except (SettingsError, ShardingError, BusyError, schema.SchemaError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(
            f"{error.filename or options.output}: {error.strerror}; what is staged is kept, start again to continue"
        )
    return 0


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
