"""Region probing: which structure is it, from the mean of the patches under its mask?

A unit is one structure in one slice. The masks are given, so this asks what patches know, not where a head draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome
from eval.data.cohorts import Cohort
from eval.probes.logistic import Line, Standard, solve
from eval.statistics.predictions import Scored
from meddap.settings import SettingsError

_LAST = (-1,)  # the block whose patches are read


@dataclass(frozen=True)
class Regions:
    """R regions: features (R, F), structure (R,) place in `names`, slice (R,) row of the cohort."""

    features: np.ndarray
    structure: np.ndarray
    slice: np.ndarray


@dataclass(frozen=True)
class Named:
    """A line from a region's features to the structures."""

    line: Line
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        found = regions(test, self.task.region.cells)
        names = np.array([f"{test.keys[row]}-{place}" for row, place in zip(found.slice, found.structure)])
        scores = self.line.probabilities(found.features, True)
        return [
            Outcome(
                Scored(
                    "multiclass",
                    scores[None],
                    found.structure[:, None].astype(np.float64),
                    test.examples.subjects[found.slice],
                    names,
                    test.names,
                )
            )
        ]


def fit(train: Cohort, val: Cohort, context: Context) -> Named:
    """Fit logistic regression of fixed strength: nothing is chosen; with `refit` on validation patients as well."""
    task, config = context.task, context.task.region
    found = regions(train.plus(val) if task.refit else train, config.cells)
    if len(np.unique(found.structure)) < 2:
        raise SettingsError(f"{task.data}: the training patients hold fewer than two structures; region needs two")
    standard = Standard.of(found.features)
    states = (found.structure[:, None] == np.arange(len(train.names))).astype(np.int8)
    line = Line(standard, *solve(standard.apply(found.features), states, config.strength, 200, True))
    return Named(line, task, {"C": config.strength}, task.refit)


def regions(cohort: Cohort, cells: int) -> Regions:
    """Return every structure of every slice that covers at least `min_pixels` there."""
    examples, grid = cohort.examples, round(cohort.stored_patches.shape[1] ** 0.5)
    maps, features, structures, rows = cohort.maps(grid * cells), [], [], []
    for row in np.flatnonzero((np.nan_to_num(examples.targets) > 0).any(axis=1)):
        tokens, drawn = cohort.patches(np.array([row]), _LAST)[0].numpy(), torch.from_numpy(np.array(maps[row]))
        for place in np.flatnonzero(np.nan_to_num(examples.targets[row]) > 0):
            mask = (drawn == examples.values[place]).float()
            share = F.avg_pool2d(mask[None, None], cells).reshape(-1).numpy()
            if share.sum() > 0:  # a structure of a few pixels may lie between the cells
                features.append(share @ tokens / share.sum())
                structures.append(place)
                rows.append(row)
    return Regions(np.array(features), np.array(structures, np.int64), np.array(rows, np.int64))
