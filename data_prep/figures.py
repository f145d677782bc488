"""Figures for HTML pages, each a PNG as bytes. Axes are drawn in a grey that is legible on light and on dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.schema import Slice
from data_prep.volumes.scaling import HIGH, LOW

INK = "#808890"
STYLE: Any = {  # of a type that lists every name of matplotlib's settings
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
}
WINDOW_HU = {"cmap": "gray", "vmin": -250, "vmax": 450}
_WINDOW_MR = {"cmap": "gray", "vmin": LOW, "vmax": HIGH}
COLOURS: Sequence[Any] = matplotlib.color_sequences["tab10"]  # RGB, 0 to 1


def png(figure: Figure) -> bytes:
    """Return a finished figure as PNG and close it."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=110, transparent=True, bbox_inches="tight")
    plt.close(figure)
    return memory.getvalue()


def grid(rows: int, columns: int, side: float = 1.5) -> tuple[Figure, np.ndarray]:
    """Return a figure and its (rows, columns) axes, without ticks or frames."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(columns * side, rows * side), squeeze=False, layout="constrained"
        )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    return figure, axes


def overlay(axis: Axes, labels: np.ndarray, opacity: float = 0.6) -> None:
    """Draw (H, W) labels in colour over an image; 0 is transparent."""
    shown = np.zeros((*labels.shape, 4))
    for value in np.unique(labels[labels > 0]):
        shown[labels == value] = (*COLOURS[(value - 1) % len(COLOURS)], opacity)
    axis.imshow(shown, interpolation="nearest")


def slices(samples: Sequence[Slice], columns: int = 8) -> bytes:
    """Draw example slices, a tile per sequence, with labels and foreground boxes, in true proportions."""
    tiles = [(sample, planes, name) for sample in samples for planes, name in zip(sample.planes, sample.sequences)]
    several = max((len(sample.sequences) for sample in samples), default=1)
    columns = min(len(tiles), max(columns - columns % several, several))
    figure, axes = grid(-(-len(tiles) // columns), columns)
    for axis, (sample, planes, name) in zip(axes.flat, tiles):
        if len(planes) > 1:
            axis.imshow(np.clip((np.moveaxis(planes, 0, -1) - float(LOW)) / (HIGH - LOW), 0, 1))
        else:
            axis.imshow(planes[0], **(WINDOW_HU if planes.dtype == np.int16 else _WINDOW_MR))
        axis.set_aspect(sample.spacing[0] / sample.spacing[1])
        if planes.dtype != np.int16:
            axis.set_title(name, color=INK, pad=2)
        if sample.labelmap is not None:
            overlay(axis, sample.labelmap)
        row0, row1, column0, column1 = sample.box
        outline = plt.Rectangle((column0, row0), column1 - column0, row1 - row0, fill=False, color="#e0b040", lw=0.8)
        axis.add_patch(outline)
    return png(figure)


def histograms(values: dict[str, tuple[np.ndarray, np.ndarray]], unit: str, logarithmic: bool = True) -> bytes:
    """Draw a panel for each name: (values, counts) as a filled line."""
    with plt.rc_context(STYLE):
        columns = min(len(values), 4)
        rows = -(-len(values) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(9.5 if columns > 1 else 6, 2.2 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(values) :]:
            axis.set_visible(False)
        for axis, (name, (at, counts)) in zip(axes.flat, values.items()):
            axis.fill_between(at, counts, step="mid", alpha=0.5, color=COLOURS[0])
            axis.set(title=name, xlabel=unit, yticks=[])
            if logarithmic:
                axis.set_yscale("log")
                axis.set_yticks([])
                axis.minorticks_off()
            axis.spines["left"].set_visible(False)
    return png(figure)


def shares(words: Mapping[str, Sequence[float]], most: int = 8) -> bytes:
    """Draw the (before, after) share, 0 to 1, of each word as two bars in percent; the rarest are summed up."""
    ordered = sorted(words.items(), key=lambda item: -item[1][0])
    shown = dict(ordered[:most])
    if rest := [share for _, share in ordered[most:]]:
        shown[f"{len(rest)} others"] = [sum(share[place] for share in rest) for place in (0, 1)]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 0.5 + 0.4 * len(shown)), layout="constrained")
        places = np.arange(len(shown))[::-1]
        for number, (label, shift) in enumerate((("before", 0.18), ("after", -0.18))):
            values = [100 * share[number] for share in shown.values()]
            drawn = axis.barh(places + shift, values, 0.34, color=COLOURS[number], alpha=0.7, label=label)
            axis.bar_label(drawn, [f"{value:.1f} %" for value in values], padding=3, color=INK)
        axis.set(xticks=[], yticks=places, yticklabels=list(shown))
        axis.margins(x=0.15)
        axis.legend(frameon=False, loc="lower right")
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return png(figure)


def bars(counts: dict[str, int], unit: str) -> bytes:
    """Draw a horizontal bar with its count for each name."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 0.35 + 0.24 * len(counts)), layout="constrained")
        names = list(counts)[::-1]
        drawn = axis.barh(names, [counts[name] for name in names], color=COLOURS[0], alpha=0.6, height=0.7)
        axis.bar_label(drawn, [f"{counts[name]:,}" for name in names], padding=3, color=INK)
        axis.set(xticks=[], xlabel=unit)
        axis.margins(x=0.12)
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return png(figure)
