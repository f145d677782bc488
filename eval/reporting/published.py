"""Published figures of a benchmark, shown beside the user's: by name, with their source and what keeps them apart.

They lie in eval/published/FILE.yaml, which nothing computes: source, protocol (how they were measured), split
(`split.by` that it amounts to), metrics, and by set the tested units and a row per method. A task names a set by
`published=FILE/SET`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.reporting import results
from eval.statistics.predictions import Prediction, Scored
from meddap.page import dim
from meddap.records import misfit
from meddap.settings import SettingsError

FOLDER = Path(__file__).resolve().parents[1] / "published"
_FORM = {
    **{"source": str, "protocol": str, "split": str, "metrics": [str]},
    "sets": {...: {"units": [int], "rows": {...: {...: float}}}},
}


@dataclass(frozen=True)
class Benchmark:
    """What others published about one set.

    source, protocol  where the figures stand; how they were measured
    split             `split.by` of the task that tests on the same units
    metrics           in the order of the columns
    units             how many units were tested; several numbers where the set came in several versions
    rows              method → metric → value
    """

    name: str
    source: str
    protocol: str
    split: str
    metrics: tuple[str, ...]
    units: tuple[int, ...]
    rows: Mapping[str, Mapping[str, float]]


def names() -> list[str]:
    """Return all sets as `published` of a task names them, sorted."""
    return sorted(f"{path.stem}/{name}" for path in FOLDER.glob("*.yaml") for name in _read(path)["sets"])


def find(name: str) -> Benchmark | None:
    """Return the set that `published=FILE/SET` names, None for "". Raises SettingsError for an unknown one."""
    if not name:
        return None
    file, _, chosen = name.partition("/")
    path = FOLDER / f"{file}.yaml"
    sets = _read(path)["sets"] if file.isidentifier() and path.is_file() else {}
    if chosen not in sets:
        raise SettingsError(f"published={name}: nothing is recorded for it; there are {', '.join(names())}")
    content, mine = _read(path), sets[chosen]
    metrics, units = tuple(content["metrics"]), tuple(mine["units"])
    return Benchmark(name, content["source"], content["protocol"], content["split"], metrics, units, mine["rows"])


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text("utf-8"))
    if wrong := misfit(content, _FORM):
        raise SettingsError(f"{path}: {wrong}; mend the file")
    return content


def doubts(benchmark: Benchmark, task: Mapping[str, Any], predictions: Mapping[str, Prediction]) -> list[str]:
    """Return why the figures of a task must not be compared with the published ones, as sentences; [] for none seen.

    task  as `results.read_predictions` returns it
    """
    found = []
    if (by := task["split"]["by"]) != benchmark.split:
        found.append(f"split.by={by} here, {benchmark.split} there")
    counts = {_units(each) for each in predictions.values()}
    if counts and not counts & set(benchmark.units):
        there = " or ".join(f"{count:,}" for count in benchmark.units)
        found.append(f"{max(counts):,} units are tested here, {there} there")
    if (share := task.get("labelled_share", 1.0)) < 1:
        found.append(f"labels of {share:.0%} of the training patients are used here, all there")
    return found


def _units(prediction: Prediction) -> int:
    """Return how many units a prediction was tested on: slices, images or volumes; patients of drawn structures."""
    return len(prediction.keys) if isinstance(prediction, Scored) else len(np.unique(prediction.subjects))


def of(folder: Path) -> tuple[Benchmark, list[str]] | None:
    """Return the benchmark that the task of a folder of probes names, and the doubts; None where it names none."""
    task, predictions = results.read_predictions(folder)
    benchmark = find(task.get("published", ""))
    return None if benchmark is None else (benchmark, doubts(benchmark, task, predictions))


def lines(folder: Path) -> list[str]:
    """Return published figures as lines for a console, a Markdown table in them; [] where the task names none."""
    known = of(folder)
    if known is None:
        return []
    benchmark, said = known
    head = [f"| published | {' | '.join(benchmark.metrics)} |", "|---" * (1 + len(benchmark.metrics)) + "|"]
    rows = [f"| {method} | {' | '.join(_cells(benchmark, row))} |" for method, row in benchmark.rows.items()]
    return [f"Published, not measured here: {benchmark.source}.", *_caution(benchmark, said), "", *head, *rows]


def section(folder: Path) -> Iterator[str]:
    """Yield published figures as a table of the page; nothing where the task names none."""
    known = of(folder)
    if known is None:
        return
    benchmark, said = known
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("published", *benchmark.metrics))
    rows = "".join(
        f"<tr><td>{html.escape(method)}</td>"
        + "".join(f'<td class="n">{cell}</td>' for cell in _cells(benchmark, row))
        + "</tr>"
        for method, row in benchmark.rows.items()
    )
    caption = f"Published, not measured here: {html.escape(benchmark.source)}"
    yield f'<div class="figures"><table><caption>{caption}</caption><tr>{head}</tr>{rows}</table></div>'
    for text in _caution(benchmark, said):
        yield dim(text)


def _caution(benchmark: Benchmark, said: list[str]) -> list[str]:
    measured = f"Measured as: {' '.join(benchmark.protocol.split())}."
    return [measured, *([f"Not comparable: {'; '.join(said)}."] if said else [])]


def _cells(benchmark: Benchmark, row: Mapping[str, float]) -> list[str]:
    return [f"{row[metric]:.3f}" if metric in row else "" for metric in benchmark.metrics]
