"""Figures for print, as SVG and PDF: one column wide (85 mm), told apart by colour-blind readers and in grey."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from eval.reporting import curves
from eval.reporting.forest import Row, draw
from eval.statistics.predictions import Scored

WIDTH = 85 / 25.4  # inches
_INK = "#222222"
_STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType, embedded: text stays text
    "svg.fonttype": "path",  # looks alike where the font is missing
    "svg.hashsalt": "meddap",  # the same figure is the same bytes
}
_PANELS = 8  # labels in a file

Drawn = Callable[[plt.Axes, dict[str, Scored], int, int, int], None]


def classifiers(predictions: dict[str, Scored], draws: int, seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield ROC and calibration of all labels as (name, bytes by format); more than eight labels take several files."""
    kinds: dict[str, Drawn] = {"roc": curves.draw_roc, "calibration": curves.draw_calibration}
    labels = curves.labels_of(predictions)
    for name, each in kinds.items():
        for start in range(0, len(labels), _PANELS):
            part = f"-{start // _PANELS + 1}" if len(labels) > _PANELS else ""
            yield name + part, _panels(predictions, labels[start : start + _PANELS], each, draws, seed)


def _panels(
    predictions: dict[str, Scored], labels: Sequence[tuple[int, str]], draw_one: Drawn, draws: int, seed: int
) -> dict[str, bytes]:
    columns = min(2, len(labels))
    rows = -(-len(labels) // columns)
    side = WIDTH / columns
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH, rows * side * (0.98 if columns > 1 else 0.85) + 0.3), squeeze=False
        )
        figure.set_layout_engine("constrained")
        for axis in axes.flat[len(labels) :]:
            axis.set_visible(False)
        for axis, (column, name) in zip(axes.flat, labels):
            draw_one(axis, predictions, column, draws, seed)
            if len(labels) > 1:
                axis.set_title(name)
        for number, axis in enumerate(axes.flat):
            axis.set_xlabel(axis.get_xlabel() if number + columns >= len(labels) else "")
            axis.set_ylabel(axis.get_ylabel() if number % columns == 0 else "")
        figure.legend(
            handles=curves.handles(predictions), loc="outside lower center", ncols=3, frameon=False, handlelength=3
        )
        return saved(figure)


def forest(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return a forest plot by format."""
    with plt.rc_context(_STYLE):
        return saved(draw(rows, WIDTH, 6.5))


def saved(figure: Figure) -> dict[str, bytes]:
    """Return a finished figure as SVG and PDF, without dates or names, and close it."""
    found = {}
    if figure.get_layout_engine() is not None:  # once for both formats
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("pdf", {"CreationDate": None})):
        memory = io.BytesIO()
        figure.savefig(memory, format=kind, metadata=metadata)
        found[kind] = memory.getvalue()
    plt.close(figure)
    return found
