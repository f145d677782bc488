"""The description of a data set: `manifest.jsonl`, `histograms.json` and, written last, `dataset.json`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from data_prep.discovery.labelmaps import ignored_values
from data_prep.sharding.staging import Record
from meddap.disk import write_atomic
from meddap.records import misfit, read_json, read_json_lines

# The forms (meddap.records) of the rows of `manifest.jsonl`
_REJECTED = {"status": str, "source": str, "reason": str}
_ACCEPTED = {
    **{"source": str, "split": str, "stack": str, "subject": str, "sequence": str, "slices": int, "air_slices": int},
    **{"annotated": [int], "spacing_mm": [float], "meta": dict, "notes": dict},
}
# What `write` puts into `dataset.json` beside what every reader of shards needs
_COUNTS = dict.fromkeys(schema.SPLITS, [int])
_DESCRIBED = {
    "splits": dict.fromkeys(schema.SPLITS, dict),
    "sequences": dict,
    "labels": {...: str},
    "classes": {...: {"names": [str], "samples": _COUNTS, "patients": _COUNTS}},
    "made_with": {"inputs": str, "settings": dict},
}


def describe(
    shards: dict[str, list[dict]],
    manifest: list[dict],
    histograms: dict[str, dict[str, int]],
    labels: dict[str, str],
    classes: dict[str, dict],
    made_with: dict,
    warned: Sequence[str] = (),
) -> dict[str, Any]:
    """Return `dataset.json`: the shards by split, statistics of the training patients, names of labels and classes.

    "channels" names the sequences with samples in colour, "ignore" has the label values of voxels that nobody
    annotated, "warnings" what the console warned of.
    """
    accepted = [row for row in manifest if row["status"] == "accepted"]
    splits, settings = {}, made_with["settings"]
    named = {**made_with.get("found", {}).get("labels", {}), **settings.get("labels", {})}
    for split in schema.SPLITS:
        mine = [row for row in accepted if row["split"] == split]
        splits[split] = {
            "shards": shards.get(split, []),
            "samples": sum(row["samples"] for row in shards.get(split, [])),
            "series": len({row["stack"] for row in mine}),
            "subjects": len({row["subject"] for row in mine}),
        }
    values = sorted({value for row in accepted for value in row["annotated"]})
    return {
        "schema": schema.VERSION,
        "digest": schema.dataset_digest(splits),
        "splits": splits,
        "sequences": dict(sorted(Counter(row["sequence"] for row in accepted).items())),
        **({"channels": channels} if (channels := _channels(accepted)) else {}),
        "statistics": {name: statistics(counts) for name, counts in sorted(histograms.items())},
        "labels": {str(value): labels.get(str(value), f"label {value}") for value in values},
        "ignore": sorted(ignored_values(settings.get("ignore", ()), named)),
        "classes": classes,
        **({"license": settings["license"]} if settings.get("license") else {}),
        "warnings": list(warned),
        "made_with": made_with,
    }


def _channels(accepted: list[dict]) -> dict[str, int]:
    """Return the most channels that a sample of each sequence has, of those with some in colour."""
    coloured = {row["sequence"]: row["channels"] for row in accepted if row.get("channels", 1) > 1}
    return dict(sorted(coloured.items()))


def classes(records: Iterable[Record], names: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    """Return for each label column its class names, and by split how many samples and patients each class has."""
    samples, patients = (
        {column: {split: [0] * len(own) for split in schema.SPLITS} for column, own in names.items()} for _ in range(2)
    )
    counted = set()
    for record in records:
        for column, place in record.labels.items() if record.samples else ():
            samples[column][record.split][place] += len(record.samples)
            if (patient := (column, record.subject, place)) not in counted:
                counted.add(patient)
                patients[column][record.split][place] += 1
    return {
        column: {"names": list(own), "samples": samples[column], "patients": patients[column]}
        for column, own in names.items()
    }


def total_of(histograms: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Return the sum of histograms: sequence → stored value → count."""
    total: dict[str, Counter[str]] = {}
    for histogram in histograms:
        for name, counts in histogram.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(sorted(counts.items(), key=lambda item: int(item[0]))) for name, counts in sorted(total.items())}


def statistics(histogram: dict[str, int]) -> dict[str, float]:
    """Return mean, standard deviation and percentiles of the foreground's stored values; empty without foreground."""
    total = {int(value): count for value, count in histogram.items()}
    if not total:
        return {}
    values = np.array(sorted(total), dtype=np.float64)
    counts = np.array([total[int(value)] for value in values], dtype=np.float64)
    mean = float((values * counts).sum() / counts.sum())
    spread = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    places = np.searchsorted(np.cumsum(counts) / counts.sum(), (0.005, 0.5, 0.995))
    low, median, high = (float(values[min(place, len(values) - 1)]) for place in places)
    return {"mean": mean, "std": spread, "p0.5": low, "p50": median, "p99.5": high}


def manifest_bytes(rows: list[dict]) -> bytes:
    """Return `manifest.jsonl`: the rows sorted by the hash of their source, then by their text."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: json.loads(line)["source"])).encode()


def write(output: Path, dataset: dict, manifest: list[dict], histograms: dict) -> None:
    """Write the description; `dataset.json` comes last, because it says that everything else is there."""
    write_atomic(output / "manifest.jsonl", manifest_bytes(manifest))
    write_atomic(output / "histograms.json", (json.dumps(histograms, sort_keys=True) + "\n").encode())
    write_atomic(output / "dataset.json", (json.dumps(dataset, indent=1, sort_keys=True) + "\n").encode())


def read_dataset(root: str | os.PathLike) -> dict[str, Any]:
    """Return `dataset.json` as `write` left it. Raises SchemaError if missing, damaged or of another version."""
    dataset = schema.read_dataset(root)
    if problem := misfit(dataset, _DESCRIBED):
        raise schema.SchemaError(f"{Path(root) / 'dataset.json'}: {problem}; {schema.AGAIN}")
    return dataset


def read_manifest(root: str | os.PathLike, dataset: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of `manifest.jsonl`. Raises SchemaError, naming the line, if missing or damaged.

    dataset  the `dataset.json` that it belongs to: then a manifest with other numbers of series is an error too
    """
    path = Path(root) / "manifest.jsonl"
    rows = read_json_lines(path, {"status": str}, schema.AGAIN, schema.SchemaError)
    for number, row in enumerate(rows, 1):
        accepted = row["status"] == "accepted"
        problem = misfit(row, _ACCEPTED if accepted else _REJECTED)
        if not problem and accepted and len(row["spacing_mm"]) != 3:
            problem = f"spacing_mm has {len(row['spacing_mm'])} values, expected 3"
        if problem:
            raise schema.SchemaError(f"{path}: line {number}: {problem}; {schema.AGAIN}")
    for split, stated in ({} if dataset is None else dataset["splits"]).items():
        count = len({row["stack"] for row in rows if row["status"] == "accepted" and row["split"] == split})
        if count != stated["series"]:
            raise schema.SchemaError(
                f"{path}: {count} series in {split}, dataset.json says {stated['series']}; {schema.AGAIN}"
            )
    return rows


def read_histograms(root: str | os.PathLike) -> dict[str, dict[str, int]]:
    """Return `histograms.json`: sequence → stored value → count. Raises SchemaError if missing or damaged."""
    path = Path(root) / "histograms.json"
    histograms = read_json(path, {...: {...: int}}, schema.AGAIN, schema.SchemaError)
    if wrong := [value for counts in histograms.values() for value in counts if not value.lstrip("-").isdecimal()]:
        raise schema.SchemaError(f"{path}: {wrong[0]!r} is not a stored value; {schema.AGAIN}")
    return histograms
