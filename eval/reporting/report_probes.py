"""The part of the page that is about probes: any number of folders that eval.probe wrote, task by task."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.data import files
from eval.encoders import windows
from eval.reporting import (
    comparison,
    curves,
    forest,
    overlays,
    patch_map_page,
    plots,
    print_figures,
    published,
    results,
    subgroup_table,
    tables,
    verdict,
)
from eval.reporting.page_files import PageFiles
from eval.reporting.results import HEADLINE, with_unit
from eval.reporting.verdict import FEW
from eval.statistics.bootstrap import shown, shown_p
from eval.statistics.predictions import LOWER_IS_BETTER, Scored
from meddap.page import dim, figure
from meddap.settings import SettingsError

_AXES = {"shots": "labelled units", "percent": "labelled training patients"}  # of learning curves
_PROBABLE = ("binary", "multiclass", "multilabel")  # kinds whose scores are probabilities


def folders_of(run: Path) -> list[Path]:
    """Return the folders of probes below a run, `before` (or NAME-before) first; or the folder itself where eval.probe
    wrote it."""
    if (run / "results.jsonl").is_file():
        return [run]
    return sorted(
        (path.parent for path in run.glob("probe/*/results.jsonl")),
        key=lambda each: (each.name.rpartition("-")[2] != "before", each.name),
    )


def section(folders: Sequence[Path], attached: PageFiles | None = None) -> Iterator[str]:
    """Yield every task with its tables and pictures; encoders are named as their folders.

    attached  takes the interactive map and the figures for print, which are then linked
    """
    if not folders:
        yield dim("No probe was run: python -m eval.probe --output RUN/probe/NAME")
        return
    rows = tables.read(folders)
    if rows:
        yield dim(
            "Test patients only; 95 % intervals by resampling patients. Validation patients chose the hyperparameters."
        )
    else:
        yield dim("No label maps in these shards, or no probes asked for: nothing was probed.")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        if len(tasks) > 1:
            yield f"<h3>Task {html.escape(task)}</h3>"
        # by the task, not by the name: a choice on two tasks has a `start` of each
        mine = [folder for folder in folders if {row["task"] for row in results.read_rows(folder)} == {task}]
        yield from _task([row for row in rows if row["task"] == task], mine, attached)
    if not tasks:
        yield from _pictures(folders, "patches", attached)


def differences(folders: Sequence[Path]) -> list[dict]:
    """Return rows of `comparison.compare` for every folder against the first one of its task."""
    found: list[dict[str, Any]] = []
    first: dict[str, Path] = {}
    for folder in folders:
        task, _ = results.read_predictions(folder)
        if (one := first.setdefault(task["name"], folder)) is not folder:
            try:
                found += comparison.compare(one, folder)
            except SettingsError:  # other patients: nothing is paired, and the table stands by itself
                continue
    return found


def _task(rows: list[dict], folders: Sequence[Path], attached: PageFiles | None) -> Iterator[str]:
    names = [folder.name for folder in folders]
    yield from _marks(rows)
    headline = [row for row in rows if row["label"] in HEADLINE]
    yield _results(headline, names)
    yield from published.section(folders[0])
    if len(headline) < len(rows):
        yield f"<details><summary>Label by label</summary>{_results(rows, names)}</details>"
    if several := [row for row in rows if "sequences" in row["variant"] and row["label"] in HEADLINE]:
        yield figure(plots.subsets(several, names), "Every subset of the sequences; the lines are means of subsets.")
    if rest := [row for row in rows if not set(row["variant"]) & {"sequences", *_AXES}]:
        yield figure(plots.intervals(rest, names), "First figure of every probe, label by label, with its interval.")
    compared = differences(folders)
    for other in names[1:]:
        if mine := [row for row in compared if row["after"] == other]:
            yield _differences(mine, names[0], other)
            yield from _forest(mine, folders[0], folders[names.index(other)], attached)
    for axis in _AXES:
        yield from _learning([row for row in rows if axis in row["variant"]], names, axis)
    yield from _classifiers(folders, attached)
    yield from _pictures(folders, rows[0]["task"], attached)
    for folder in folders:
        for picture, caption in overlays.figures(folder):
            yield figure(picture, caption)


def _marks(rows: list[dict]) -> Iterator[str]:
    """Yield what the guards found for every encoder: a table is only as good as its patients are unseen."""
    for run in dict.fromkeys(row["run"] for row in rows):
        leaks = next(row.get("leaks") for row in rows if row["run"] == run) or {}
        said = [
            f"{leaks[name]} test patients {text}"
            for name, text in (
                ("by_id", "were patients of pretraining"),
                ("by_pixels", "have slices with the very pixels of pretraining's"),
                ("in_splits", "have slices with the very pixels of training or validation slices"),
            )
            if leaks.get(name)
        ]
        if said:
            yield f'<p class="bad">Leak: {html.escape(run)}: {"; ".join(said)}.</p>'
        if leaks.get("unchecked"):
            yield dim(f"{run}: not checked against pretraining: {leaks['unchecked']}")
        if told := windows.told(next(row for row in rows if row["run"] == run)):
            yield dim(f"{run}: saw {told}.")
        opened = max(row.get("test_opened", 1) for row in rows if row["run"] == run)
        if opened > 1:
            yield dim(f"{run}: its test patients were looked at {opened} times; the figures are the last time's.")


def _results(rows: list[dict], names: list[str]) -> str:
    lines, mixed = [], any(row["label"] not in HEADLINE for row in rows)
    for key, found in tables.cells(rows).items():
        figures = "".join(
            '<td class="n">{}</td><td>{}</td>'.format(*shown(found[name])) if name in found else "<td></td><td></td>"
            for name in names
        )
        kind = ' class="macro"' if mixed and key.label in HEADLINE else ""
        probe, label = html.escape(key.probe), html.escape(key.label)
        lines.append(f"<tr{kind}><td>{probe}</td><td>{with_unit(key.metric)}</td><td>{label}</td>{figures}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th><th>95 % interval</th>" for name in names)
    head = f"<tr><th>probe</th><th>metric</th><th>label</th>{head}</tr>"
    return f'<div class="wide figures"><table>{head}{"".join(lines)}</table></div>'


def _differences(rows: list[dict], before: str, after: str) -> str:
    lines = []
    for row in rows:
        if row["label"] in HEADLINE:
            gained = (row["value"] > 0) != (row["metric"] in LOWER_IS_BETTER)
            kind = ("n good" if gained else "n bad") if row["p"] < 0.05 else "n"
            value, interval = shown(row, "+")
            p = html.escape(shown_p(row))
            name = f"<td>{html.escape(row['probe'])}</td><td>{with_unit(row['metric'])}</td>"
            lines.append(
                f'<tr>{name}<td class="{kind}">{value}</td>'
                f'<td>{interval}</td><td class="n">{p}</td><td class="n">{row["patients"]}</td></tr>'
            )
    caption = (
        f"{html.escape(after)} minus {html.escape(before)}, the same patients in every resample; where p < 0.05 "
        "(two-sided, for one comparison) green is better, red worse; mcnemar: gain in the share "
        "that is right, clustered by patient"
    )
    if (patients := min(row["patients"] for row in rows)) < FEW:
        caption += f"; with so few patients ({patients}) p-values and intervals are rough"
    head = "".join(f"<th>{name}</th>" for name in ("probe", "metric", "difference", "95 % interval", "p", "patients"))
    head = f"<table><caption>{caption}</caption><tr>{head}</tr>"
    return f'<div class="figures">{head}{"".join(lines)}</table></div>'


def _learning(rows: list[dict], names: list[str], axis: str) -> Iterator[str]:
    for probe in dict.fromkeys(row["probe"] for row in rows):
        mine = [row for row in rows if row["probe"] == probe and row["label"] in HEADLINE]
        first = [row for row in mine if row["metric"] == mine[0]["metric"]]
        caption = f"{probe}: {first[0]['metric']} against {_AXES[axis]}."
        yield figure(curves.learning(first, names, axis), caption)


def _forest(compared: list[dict], before: Path, after: Path, attached: PageFiles | None) -> Iterator[str]:
    """Yield the forest plot of a pair, and its links."""
    found = verdict.judge(before, after, compared)
    table = subgroup_table.of(found, before, after) if found is not None else None
    if rows := forest.rows_of(compared, found, table):
        yield figure(
            forest.picture(rows),
            f"{after.name} minus {before.name} with 95 % intervals: the first metric of every probe, then the main "
            "figure by label and subgroup. Blue circle: better, red square: worse, open diamond: no difference shown.",
        )
        if attached is not None:
            name = f"{_task_of(before)}-{before.name}-{after.name}-forest"
            yield attached.links("Forest plot for print", name, print_figures.forest(rows))


def _task_of(folder: Path) -> str:
    return results.read_predictions(folder)[0]["name"]


def _classifiers(folders: Sequence[Path], attached: PageFiles | None) -> Iterator[str]:
    """Yield ROC, calibration and confusion of every probe without variants that decides between classes."""
    found: dict[str, dict[str, Scored]] = {}
    for folder in folders:
        task, predictions = results.read_predictions(folder)
        for probe, prediction in predictions.items():
            if not isinstance(prediction, Scored) or " " in probe:
                continue
            if prediction.kind in _PROBABLE and len(prediction.scores) == 1:
                found.setdefault(probe, {})[folder.name] = prediction
    for probe, curves_of in found.items():
        rest = len(curves.labels_of(curves_of)) - curves.PANELS
        left = f" The other {rest} labels are in the figures for print." if rest > 0 else ""
        caption = (
            f"{probe}: ROC and calibration on the test patients. Bands and upright lines: 95 % at each point, by "
            f"resampling patients.{left}"
        )
        yield figure(curves.roc_and_calibration(curves_of, task["draws"], task["seed"]), caption)
        if attached is not None:
            for name, formats in print_figures.classifiers(curves_of, task["draws"], task["seed"]):
                yield attached.links(
                    f"{probe}, {name.replace('roc', 'ROC')} for print", f"{task['name']}-{probe}-{name}", formats
                )
        if all(each.kind == "multiclass" for each in curves_of.values()):
            yield figure(curves.confusions(curves_of), f"{probe}: confusion, slices or volumes.")


def _pictures(folders: Sequence[Path], task: str, attached: PageFiles | None) -> Iterator[str]:
    yield from _stills(folders)
    if attached is not None and (page := patch_map_page.of(folders)) is not None:
        yield attached.links(
            "Interactive patch map: click a patch and see which patches of this slice, of its neighbours and of other "
            "patients are like it, before and after",
            f"{task}-map",
            {"html": page.encode()},
        )


def _stills(folders: Sequence[Path]) -> Iterator[str]:
    there = [folder for folder in folders if (folder / "pictures.npz").is_file()]
    if not there:
        return
    pictures = [files.read_arrays(folder / "pictures.npz", "probe again") for folder in there]
    names = [folder.name for folder in there]
    if len({each["images"].shape for each in pictures}) > 1:
        yield dim("The pictures of these encoders have different sizes and are not shown side by side.")
        return
    yield "<h3>Patch features</h3>"
    yield figure(
        plots.components(names, pictures),
        "First three principal components of the patch features as red, green and blue; air is black.",
    )
    yield figure(
        plots.similarities(names, pictures),
        "Cosine similarity of every patch to the one that is marked, from 0 (dark) to 1 (bright).",
    )
    if any(key.startswith("drawn.") for each in pictures for key in each):
        yield "<h3>Segmentation</h3>"
        yield figure(plots.segmentations(names, pictures), "What is drawn on test patients.")
