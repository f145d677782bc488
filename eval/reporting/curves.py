"""Pictures of classifiers for the report: learning curves, ROC, calibration, confusion. Each a PNG as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from data_prep.figures import COLOURS, INK, STYLE, png
from eval.statistics import curve_bands
from eval.statistics.predictions import Scored

PANELS = 4  # labels on the page; print figures have all


class Look(NamedTuple):
    """How a run is drawn: told apart by colour-blind readers, and in grey by line and marker."""

    colour: str
    line: Any
    marker: str


LOOKS = (  # colours of Okabe and Ito
    Look("#0072b2", "--", "s"),
    Look("#d55e00", "-", "o"),
    Look("#009e73", ":", "^"),
    Look("#cc79a7", "-.", "D"),
    Look("#e69f00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    Look("#56b4e9", (0, (1, 3)), "P"),
)


def learning(rows: Sequence[dict], runs: Sequence[str], axis_name: str) -> bytes:
    """Draw a figure against the number of labels (`shots` or `percent`), a line per run with its interval as a band."""
    metric = rows[0]["metric"]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
        for number, run in enumerate(runs):
            mine = sorted(
                (row for row in rows if row["run"] == run and row["value"] is not None),
                key=lambda row: row["variant"][axis_name],
            )
            at = [row["variant"][axis_name] for row in mine]
            axis.plot(at, [row["value"] for row in mine], "o-", ms=4, color=COLOURS[number], label=run)
            if all(row["low"] is not None for row in mine):
                low, high = ([row[name] for row in mine] for name in ("low", "high"))
                axis.fill_between(at, low, high, color=COLOURS[number], alpha=0.15, lw=0)
        axis.set_xscale("log")
        ticks = sorted({row["variant"][axis_name] for row in rows})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        names = {"shots": "labelled units of each class", "percent": "% of the training patients"}
        axis.set(xlabel=names[axis_name], ylabel=metric)
        axis.grid(alpha=0.2)
        axis.legend(frameon=False, fontsize=8)
    return png(figure)


def roc_and_calibration(predictions: dict[str, Scored], draws: int, seed: int) -> bytes:
    """Draw ROC (above) and calibration (below), a panel for each of the first four labels or classes and a line for
    each run, with 95 % bands and intervals."""
    labels = labels_of(predictions)[:PANELS]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(labels), figsize=(2.9 * len(labels) + 0.6, 6.1), squeeze=False, layout="constrained"
        )
        for (column, name), (above, below) in zip(labels, axes.T):
            draw_roc(above, predictions, column, draws, seed)
            draw_calibration(below, predictions, column, draws, seed)
            above.set_title(name)
        for axis in axes[:, 1:].flat:
            axis.set_ylabel("")
        figure.legend(handles=handles(predictions), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def labels_of(predictions: dict[str, Scored]) -> list[tuple[int, str]]:
    """Return columns and names of the curves: of two classes the second alone, whose curves mirror the first's."""
    first = next(iter(predictions.values()))
    found = list(enumerate(first.names))
    return found[1:] if first.kind == "multiclass" and len(found) == 2 else found


def handles(runs: Iterable[str]) -> list[plt.Line2D]:
    """Return what a legend shows of each run."""
    return [
        plt.Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, ms=3.5, label=run)
        for run, look in zip(runs, cycle(LOOKS))
    ]


def draw_roc(axis: plt.Axes, predictions: dict[str, Scored], column: int, draws: int, seed: int) -> None:
    """Draw the ROC curve of a label with the band of every run; a run whose test patients lack a class has none."""
    _diagonal(axis)
    for prediction, look in zip(predictions.values(), cycle(LOOKS)):
        _, scores, positive = prediction.label(prediction.scores[0], column)
        if positive.any() and not positive.all():
            at, low, high = curve_bands.roc_band(prediction, column, draws, seed)
            axis.fill_between(at, low, high, color=look.colour, alpha=0.16, lw=0)
            axis.plot(*curve_bands.roc(scores, positive), color=look.colour, ls=look.line)
    if not axis.collections:
        axis.text(0.5, 0.4, "only one class", ha="center", transform=axis.transAxes)
    axis.set(xlabel="false positive rate", ylabel="true positive rate")


def draw_calibration(axis: plt.Axes, predictions: dict[str, Scored], column: int, draws: int, seed: int) -> None:
    """Draw the share of positives against the predicted probability, with the interval of every bin."""
    _diagonal(axis)
    for prediction, look in zip(predictions.values(), cycle(LOOKS)):
        said, true, low, high = curve_bands.reliability(prediction, column, draws, seed)
        axis.plot(said, true, color=look.colour, ls=look.line, marker=look.marker, ms=3)
        axis.vlines(said, low, high, color=look.colour, alpha=0.7, lw=0.9)
    axis.set(xlabel="predicted probability", ylabel="share that is positive")


def _diagonal(axis: plt.Axes) -> None:
    axis.plot([0, 1], [0, 1], color=INK, lw=0.6)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.set_aspect("equal")
    axis.grid(alpha=0.2)


def confusions(predictions: dict[str, Scored]) -> bytes:
    """Draw a confusion matrix per run: rows the true class, columns the predicted one, shares of the row."""
    with plt.rc_context(STYLE):
        count = len(predictions)
        classes = next(iter(predictions.values())).names
        side = 1.4 + 0.45 * len(classes)
        figure, axes = plt.subplots(1, count, figsize=(side * count, side), squeeze=False, layout="constrained")
        for axis, (run, prediction) in zip(axes[0], predictions.items()):
            table = confusion(prediction)
            share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
            axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (row, column), value in np.ndenumerate(table):
                ink = "white" if share[row, column] > 0.5 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
            places = range(len(classes))
            axis.set_xticks(places, classes, rotation=45, ha="right")
            axis.set_yticks(places, classes if axis is axes[0][0] else [""] * len(classes))
            axis.set(title=run, xlabel="predicted")
            axis.spines[:].set_visible(False)
        axes[0][0].set_ylabel("true")
    return png(figure)


def confusion(prediction: Scored) -> np.ndarray:
    """Return (C, C) counts by true and predicted class."""
    known = ~np.isnan(prediction.targets[:, 0])
    classes = len(prediction.names)
    pairs = prediction.targets[known, 0].astype(np.int64) * classes + prediction.scores[0][known].argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
