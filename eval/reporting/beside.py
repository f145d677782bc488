"""Find, next to a folder of probes, the pixel floor and the same encoder tested on each site in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.reporting import results
from meddap.errors import MeddapError

PIXELS = "pixels"  # source of the encoder that is no network


def floor(folder: Path) -> Path | None:
    """Return the folder of the pixels on the same task and data, next to `folder`; None where there is none."""
    mine = _first(folder)
    for other, row in _others(folder):
        if row.get("encoder") == PIXELS and all(row.get(key) == mine.get(key) for key in ("task", "dataset", "tested")):
            return other
    return None


def sites_in_turn(folder: Path) -> Path | None:
    """Return the folder of the same weights on the same data with `split.by=site`, next to `folder`; None: none."""
    mine = _first(folder)
    weights = mine.get("weights")
    for other, row in _others(folder):
        same = row.get("weights") == weights and row.get("dataset") == mine.get("dataset")
        if weights and same and row.get("tested") == "site":
            return other
    return None


def _others(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the other folders of probes in the same place, each with a row of its results."""
    for path in sorted(folder.resolve().parent.glob("*/results.jsonl")):
        if path.parent != folder.resolve() and (row := _first(path.parent)):
            yield path.parent, row


def _first(folder: Path) -> dict[str, Any]:
    """Return a row of a folder's results, for what all of them share; {} where they cannot be read."""
    try:
        return next(iter(results.read_rows(folder)), {})
    except MeddapError:
        return {}
