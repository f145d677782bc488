"""Best, median and worst test patient of every probe that draws: what a mean over patients hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from data_prep.figures import COLOURS, INK, grid, overlay, png
from eval.contract import Drawing
from eval.data import files, images
from eval.data.cohorts import Cohort
from eval.reporting import pictures
from eval.statistics import metrics
from eval.statistics.predictions import Tabled

RANKS = ("best", "median", "worst")


def save(path: Path, test: Cohort, drawings: Mapping[str, Drawing], predictions: Mapping[str, Tabled]) -> None:
    """Write `overlays.npz` of the probes in `predictions`: `<probe>.images` (3, s, s) in 0…1, `.truth` and `.drawn`
    (3, s, s) uint8 (place of the structure in `names` plus 1, 0 for none), `.dice` (3,) of the patient, ranks as in
    RANKS; `names`."""
    arrays = {"names": np.array(test.names)}
    for probe, prediction in predictions.items():
        mine = np.isin(prediction.subjects, test.examples.subjects)  # this fold's patients, where there are several
        dice = np.where(mine, metrics.macro(prediction.values["dice"][0]), np.nan)
        rows = np.array([_fullest(test, prediction.subjects[place]) for place in ranked(dice)])
        shown = [test.examples.read(row) for row in rows]
        size = test.base.task.size
        units = [images.shown(each, size, pictures.WINDOW)[0] for each in shown]
        arrays[f"{probe}.images"] = torch.stack(units).numpy().astype(np.float16)
        arrays[f"{probe}.truth"] = np.stack([pictures.truth(each, size, test.examples.values) for each in shown])
        arrays[f"{probe}.drawn"] = drawings[probe].draw(test, rows)
        arrays[f"{probe}.dice"] = dice[ranked(dice)]
    files.write_arrays(path, arrays)


def ranked(dice: np.ndarray) -> np.ndarray:
    """Return the places of the best, the median and the worst patient; one without a figure is none of them."""
    known = np.flatnonzero(~np.isnan(dice))
    order = known[np.argsort(-dice[known], kind="stable")]
    return order[[0, (len(order) - 1) // 2, -1]] if len(order) else np.zeros(0, np.int64)


def _fullest(test: Cohort, subject: str) -> int:
    """Return the patient's slice with most structures, the middle one of several."""
    rows = np.flatnonzero(test.examples.subjects == subject)
    seen = np.nan_to_num(test.examples.targets[rows]).sum(axis=1)
    best = rows[seen == seen.max()]
    return int(best[len(best) // 2])


def read(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays by probe of a probe's folder; empty where it has none."""
    path = folder / "overlays.npz"
    if not path.is_file():
        return {}
    remedy = "probe again"
    arrays = files.read_arrays(path, remedy)
    found: dict[str, dict[str, np.ndarray]] = {}
    with files.reading(path, remedy):
        for key in arrays:
            probe, dot, name = key.rpartition(".")
            if dot:
                found.setdefault(probe, {"names": arrays["names"]})[name] = arrays[key]
    return found


def figures(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Yield a picture and its caption for every probe that drew."""
    for probe, arrays in read(folder).items():
        yield picture(arrays), f"{folder.name}, {probe}: best, median and worst test patient by mean Dice."


def picture(arrays: dict[str, np.ndarray]) -> bytes:
    """Return three patients as rows: image, truth, what was drawn."""
    count, titles = len(arrays["images"]), ("image", "truth", "drawn")
    figure, axes = grid(count, len(titles), 2.0)
    for place in range(count):
        layers: Sequence = (None, arrays["truth"][place], arrays["drawn"][place])
        axes[place][0].set_ylabel(f"{RANKS[place]}, Dice {arrays['dice'][place]:.2f}", color=INK)
        for axis, title, layer in zip(axes[place], titles, layers):
            axis.imshow(arrays["images"][place].astype(np.float32), cmap="gray", vmin=0, vmax=1)
            if layer is not None:
                overlay(axis, layer)
            if place == 0:
                axis.set_title(title, color=INK)
    names = arrays["names"].tolist()
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[number % len(COLOURS)]) for number in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
    return png(figure)
