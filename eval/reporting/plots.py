"""The report's pictures, each a PNG as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from data_prep.figures import COLOURS, INK, STYLE, grid, overlay, png
from eval.reporting.results import words

_GREY = {"cmap": "gray", "vmin": 0, "vmax": 1}
_OF_FEW = 15  # parts of the steps that curves of few images, those of one source, are smoothed by


def crops(global_crops: np.ndarray, local_crops: np.ndarray, count: int = 8) -> bytes:
    """Draw two global and up to two local crops of the first samples, a column each; arrays as `Views` holds them."""
    kinds = [("global 1", global_crops[0]), ("global 2", global_crops[1])]
    kinds += [(f"local {number + 1}", local) for number, local in enumerate(local_crops[:2])]
    count = min(count, global_crops.shape[1])
    figure, axes = grid(len(kinds), count)
    for (name, each), row in zip(kinds, axes):
        row[0].set_ylabel(name, color=INK)
        for axis, crop in zip(row, each):
            shown = next((plane for plane in crop if plane.min() < plane.max()), crop[0])  # absent sequences are flat
            axis.imshow(shown, cmap="gray", interpolation="nearest")
    return png(figure)


def curves(rows: Sequence[dict]) -> bytes:
    """Draw loss terms, learning rate and signs of collapse over the steps."""
    steps = [row["step"] for row in rows]
    terms = [name for name in rows[0] if name.startswith("loss/") and name != "loss/total"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
        for name in terms:
            values = np.array([row[name] for row in rows])
            axes[0].plot(steps, values, lw=0.5, alpha=0.3, color=COLOURS[terms.index(name)])
            axes[0].plot(steps, _smooth(values), lw=1.4, label=name[5:], color=COLOURS[terms.index(name)])
        axes[0].set_title("loss terms")
        for name in (key for key in rows[0] if key.startswith("monitor/")):
            axes[1].plot(
                steps, _smooth(np.array([row[name] for row in rows])), lw=1.4, label=name[8:].replace("_", " ")
            )
        axes[1].set_title("signs of collapse (entropy, prototypes, spread, rank)")
        axes[2].plot(steps, [row["lr"] for row in rows], lw=1.4, label="learning rate")
        axes[2].set_title("learning rate")
        for axis in axes:
            axis.set_xlabel("step")
            axis.grid(alpha=0.2)
        for axis in axes[:2]:
            axis.set_ylim(top=axis.get_ylim()[1] * 1.3)  # room for the legend above the curves
            axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return png(figure)


def sources(rows: Sequence[dict], names: Sequence[str]) -> bytes:
    """Draw the loss and the spreads of each of several sources over the steps, smoothed; not every step has all."""
    parts = {"loss": "loss", "cls_spread": "spread of cls tokens", "patch_spread": "spread of masked patches"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(parts), figsize=(11, 2.8), layout="constrained")
        for axis, (key, title) in zip(axes, parts.items()):
            for place, name in enumerate(names):
                mine = [(row["step"], row[f"source/{name}/{key}"]) for row in rows if f"source/{name}/{key}" in row]
                if mine:
                    steps, values = np.array(mine).T
                    colour = COLOURS[place % len(COLOURS)]
                    axis.plot(steps, _smooth(values, _OF_FEW), lw=1.4, label=name, color=colour)
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.grid(alpha=0.2)
        axes[0].set_ylim(top=axes[0].get_ylim()[1] * 1.1)
        axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return png(figure)


def _smooth(values: np.ndarray, parts: int = 50) -> np.ndarray:
    """Return the moving mean over one of `parts` equal parts of the values."""
    width = max(1, len(values) // parts)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def segmentations(names: Sequence[str], pictures: Sequence[dict[str, np.ndarray]]) -> bytes:
    """Draw for each slice image, truth and each encoder's prediction; arrays as eval.reporting.pictures writes them."""
    drawn = [
        (f"{name}\n{key[6:]}" if len(pictures) > 1 else key[6:], each[key])
        for name, each in zip(names, pictures)
        for key in each
        if key.startswith("drawn.")
    ]
    titles, first = ["image", "truth", *(title for title, _ in drawn)], pictures[0]
    count = len(first["images"])
    figure, axes = grid(count, len(titles), 2.0)
    for place in range(count):
        layers = [None, first["truth"][place], *(maps[place] for _, maps in drawn)]
        for axis, title, layer in zip(axes[place], titles, layers):
            axis.imshow(first["images"][place].astype(np.float32), **_GREY)
            if layer is not None:
                overlay(axis, layer)
            if place == 0:
                axis.set_title(title, color=INK)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[i % len(COLOURS)]) for i in range(len(first["names"]))]
    figure.legend(
        handles,
        first["names"].tolist(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return png(figure)


def components(names: Sequence[str], pictures: Sequence[dict[str, np.ndarray]]) -> bytes:
    """Draw a row per encoder: the three principal components of its patch features as colours."""
    figure, axes = grid(1 + len(names), len(pictures[0]["images"]), 2.0)
    rows = [("image", pictures[0]["images"].astype(np.float32), _GREY)]
    rows += [(name, each["components"], {"interpolation": "nearest"}) for name, each in zip(names, pictures)]
    for (name, images, style), row in zip(rows, axes):
        row[0].set_ylabel(name, color=INK)
        for axis, image in zip(row, images):
            axis.imshow(image, **style)
    return png(figure)


def subsets(rows: Sequence[dict], encoders: Sequence[str]) -> bytes:
    """Figures of a label from subsets of the sequences: a panel per metric, a point per subset with its interval at the
    number of its sequences, a line through the means; a colour per encoder."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.0), squeeze=False, layout="constrained")
        for axis, metric in zip(axes[0], names):
            for number, encoder in enumerate(encoders):
                mine = [row for row in rows if (row["metric"], row["run"]) == (metric, encoder)]
                _by_count(axis, mine, (number - (len(encoders) - 1) / 2) * 0.22, COLOURS[number], encoder)
            axis.set(title=metric, xlabel="sequences present")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.2)
        axes[0][0].legend(frameon=False, fontsize=8)
    return png(figure)


def _by_count(axis: plt.Axes, rows: Sequence[dict], shift: float, colour: tuple, name: str) -> None:
    by_count: dict[int, list[dict]] = {}
    for row in rows:
        if row["value"] is not None:
            by_count.setdefault(row["variant"]["sequences"].count("+") + 1, []).append(row)
    for count, each in by_count.items():
        for place, row in enumerate(each):
            at = count + shift + 0.18 * (place / max(len(each) - 1, 1) - 0.5)
            if row["low"] is not None:
                axis.plot([at, at], [row["low"], row["high"]], color=colour, lw=0.8, alpha=0.5)
            axis.plot(at, row["value"], "o", ms=3, color=colour)
    means = [np.mean([row["value"] for row in by_count[count]]) for count in sorted(by_count)]
    axis.plot([count + shift for count in sorted(by_count)], means, color=colour, lw=1.6, label=name)


def lost_sequences(rows: Sequence[dict]) -> bytes:
    """Draw the loss on entirely masked sequences over the steps, and that of knowing each sequence's marginal."""
    shown = [row for row in rows if "sequences/loss" in row]
    steps = [row["step"] for row in shown]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
        for key, label in (("sequences/loss", "student"), ("sequences/marginal", "marginal of each sequence")):
            axis.plot(steps, _smooth(np.array([row[key] for row in shown])), lw=1.4, label=label)
        axis.set(xlabel="step", ylabel="cross-entropy")
        axis.grid(alpha=0.2)
        axis.legend(frameon=False, fontsize=8)
    return png(figure)


def similarities(names: Sequence[str], pictures: Sequence[dict[str, np.ndarray]]) -> bytes:
    """Draw a row per encoder: how similar every patch is to the marked one."""
    figure, axes = grid(1 + len(names), len(pictures[0]["images"]), 2.0)
    axes[0][0].set_ylabel("image", color=INK)
    for axis, image in zip(axes[0], pictures[0]["images"]):
        axis.imshow(image.astype(np.float32), **_GREY)
    for name, each, row in zip(names, pictures, axes[1:]):
        row[0].set_ylabel(name, color=INK)
        for axis, image, (down, across) in zip(row, each["similarity"], each["anchors"]):
            axis.imshow(image, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axis.plot(across, down, "o", ms=5, mfc="none", color="#40c0ff")
    return png(figure)


def intervals(rows: Sequence[dict], encoders: Sequence[str]) -> bytes:
    """Draw the first figure of every probe, label by label with intervals: a panel per probe, a colour per encoder."""
    first: dict[tuple[Any, ...], str] = {}
    for row in rows:
        first.setdefault(_panel(row), row["metric"])
    with plt.rc_context(STYLE):
        firsts = [row for row in rows if row["metric"] == first[_panel(row)]]
        labels = list(dict.fromkeys(row["label"] for row in firsts))
        columns = min(len(first), 4)
        figure, axes = plt.subplots(
            -(-len(first) // columns),
            columns,
            figsize=(3.6 * columns, (0.6 + 0.34 * len(labels)) * -(-len(first) // columns)),
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        for axis in axes.flat[len(first) :]:
            axis.set_visible(False)
        for axis, ((probe, *variant), metric) in zip(axes.flat, first.items()):
            shown = [row for row in rows if _panel(row) == (probe, *variant) and row["metric"] == metric]
            for number, name in enumerate(encoders):
                shift = (number - (len(encoders) - 1) / 2) * 0.22
                for row in (each for each in shown if each["run"] == name and each["value"] is not None):
                    place = labels.index(row["label"]) + shift
                    if row["low"] is not None:
                        axis.plot([row["low"], row["high"]], [place] * 2, color=COLOURS[number], lw=1.6)
                    axis.plot(row["value"], place, "o", ms=4, color=COLOURS[number])
            axis.set_title(f"{probe}{words(dict(variant))} ({metric})")
            axis.grid(alpha=0.2, axis="x")
        axes[0][0].set_yticks(range(len(labels)), labels)
        axes[0][0].invert_yaxis()
        handles = [plt.Line2D([], [], color=COLOURS[number], marker="o", ms=4) for number in range(len(encoders))]
        figure.legend(handles, encoders, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def _panel(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the probe of a row and its variant's items."""
    return (row["probe"], *row["variant"].items())
