"""Paired difference of two probed encoders on the same patients.

python -m eval.compare --runs BEFORE AFTER --output comparison.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from data_prep.disk import write_atomic
from data_prep.settings import SettingsError
from eval import bootstrap
from eval.bootstrap import Overlap, Presence

KIND = {"knn": Presence, "linear": Presence, "segmentation": Overlap}


def read_predictions(folder: Path) -> tuple[list[str], dict, dict[str, Presence | Overlap]]:
    """Organs, settings and predictions by probe of a probe's folder. Raises SettingsError where it has none."""
    path = folder / "predictions.npz"
    if not path.is_file():
        raise SettingsError(f"{path}: not found; run eval.probe --output {folder} first")
    with np.load(path, allow_pickle=False) as arrays:
        probes = {name.partition(".")[0] for name in arrays.files if "." in name}
        predictions = {
            probe: KIND[probe](**{field.name: arrays[f"{probe}.{field.name}"] for field in fields(KIND[probe])})
            for probe in KIND
            if probe in probes
        }
        return arrays["organs"].tolist(), json.loads(str(arrays["made"])), predictions


def compare(before: Path, after: Path) -> list[dict]:
    """A row per probe and organ: difference after − before with its interval. Raises SettingsError."""
    organs, made, ours = read_predictions(before)
    other_organs, _, theirs = read_predictions(after)
    if organs != other_organs:
        raise SettingsError(
            f"{after}: probes {', '.join(other_organs)}, but {before} {', '.join(organs)}; run the same task"
        )
    rows = []
    for probe in ours.keys() & theirs.keys():
        try:
            figures = bootstrap.differences(ours[probe], theirs[probe], made["draws"], made["task"]["seed"])
        except ValueError as error:
            raise SettingsError(f"{after}: {error}") from error
        rows += [
            {"probe": probe, "organ": organ, "before": str(before.name), "after": str(after.name), **figure.row()}
            for organ, figure in zip([*organs, "macro"], figures)
        ]
    return sorted(rows, key=lambda row: list(KIND).index(row["probe"]))


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| probe | organ | difference | 95 % interval | patients |", "|---|---|---|---|---|"]
    for row in rows:
        figure = " | ".join(bootstrap.shown(row, "+"))
        lines.append(f"| {row['probe']} | {row['organ']} | {figure} | {row['patients']} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description="Paired difference of two probed encoders on the same patients."
    )
    parser.add_argument(
        "--runs", nargs=2, required=True, type=Path, metavar=("BEFORE", "AFTER"), help="two folders of eval.probe"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines, a row per probe and organ")
    options = parser.parse_args(arguments)
    try:
        rows = compare(*options.runs)
        if options.output:
            write_atomic(options.output, "".join(json.dumps(row) + "\n" for row in rows).encode())
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
