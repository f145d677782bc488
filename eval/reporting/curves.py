"""Pictures of classifiers for the report: learning curves, ROC, calibration, confusion. Each a PNG as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from data_prep.figures import COLOURS, INK, STYLE, png
from eval.statistics.predictions import Scored

_LINES = ("-", "--", ":", "-.")
_BINS = 10


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


def roc_and_calibration(predictions: dict[str, Scored]) -> bytes:
    """Draw the ROC curve (left) and the calibration curve (right): a colour for each run, a line style for each of the
    first four labels or classes."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
        for axis in (left, right):
            axis.plot([0, 1], [0, 1], color=INK, lw=0.6)
            axis.set_aspect("equal")
            axis.grid(alpha=0.2)
        for number, prediction in enumerate(predictions.values()):
            for column in range(min(len(prediction.names), len(_LINES))):
                _, scores, positive = prediction.label(prediction.scores[0], column)
                style = {"color": COLOURS[number % len(COLOURS)], "ls": _LINES[column], "lw": 1.2}
                if positive.any() and not positive.all():
                    left.plot(*roc(scores, positive), **style)
                right.plot(*reliability(scores, positive), marker=".", **style)
        left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        right.set(xlabel="predicted probability", ylabel="share that is positive", title="calibration")
        first = next(iter(predictions.values()))
        handles = [plt.Line2D([], [], color=COLOURS[n % len(COLOURS)]) for n in range(len(predictions))]
        shown = first.names[: len(_LINES)]
        handles += [plt.Line2D([], [], color=INK, ls=_LINES[n]) for n in range(len(shown))]
        names = [*predictions, *shown]
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rate at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.diff(scores[order]) != 0, True]
    hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.r_[0, alarms / alarms[-1]], np.r_[0, hits / hits[-1]]


def reliability(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and share of positives in each of ten equal bins that is not empty."""
    place = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    there = count > 0
    said, true = (np.bincount(place, each, minlength=_BINS)[there] / count[there] for each in (scores, positive))
    return said, true


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
