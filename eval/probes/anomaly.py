"""Anomalies from normal slices only: a memory of their patches, and how far a patch is from it (PatchCore, 2106.08265).

Every patch is averaged with its neighbours and scaled to unit length; the memory is a random part of the patches of the
normal training slices; a patch's score is its mean distance to the nearest of it, a slice's that of its worst patches.
Training slices that are abnormal are not looked at; validation slices choose how many neighbours and patches count.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from eval.config import AnomalyConfig, TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.statistics.predictions import Binned
from meddap.settings import SettingsError

_LAST = (-1,)  # the block whose patches are read
_BINS = 2048
PIXELS = {"of": "pixels"}  # variant: scored pixel by pixel, where the other outcome is of slices
_PIXELS = 4  # cells of a patch's side in which pixels are scored


@dataclass(frozen=True)
class Memory:
    """Patches (M, F) of unit length and what validation slices chose; edges (B − 1,) of the bins of pixel scores."""

    patches: torch.Tensor
    edges: np.ndarray
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        neighbours, top = self.choices["neighbours"], self.choices["top"]
        maps = distances(self.patches, test, [neighbours])[neighbours]
        found = [Outcome(prediction_of(slice_scores(maps, top)[:, None], test, self.task))]
        if test.examples.values:
            found.append(Outcome(pixel_counts(maps, test, self.edges), PIXELS))
        return found


def fit(train: Cohort, val: Cohort, context: Context) -> Memory:
    """Fill the memory from normal training slices; with `refit` again, from those of validation patients as well.

    Raises SettingsError where there are none.
    """
    task, config = context.task, context.task.anomaly
    memory = fill(train, _normal(train), config, task.seed)
    found = distances(memory, val, config.neighbours)
    values: dict[tuple[int, float], float] = {}
    for neighbours, top in product(config.neighbours, config.top):
        scores = slice_scores(found[neighbours], top)[:, None]
        values[neighbours, top] = score(scores, val, task)
    neighbours, top = max(values, key=values.__getitem__)
    edges = edges_of(found[neighbours])
    if task.refit:
        both = train.plus(val)
        memory = fill(both, _normal(both), config, task.seed)
    choices = {"neighbours": neighbours, "top": top, "patches": len(memory)}
    return Memory(memory, edges, task, choices, task.refit)


def parts(fitted: Memory) -> Parts:
    """Return what is kept of it: the patches, and the edges of the bins."""
    return Parts({"patches": fitted.patches.numpy(), "edges": fitted.edges})


def restore(kept: Parts, context: Context) -> Memory:
    """Return what `parts` took apart."""
    patches = torch.from_numpy(np.array(kept.arrays["patches"]))
    return Memory(patches, kept.arrays["edges"], context.task, kept.choices, kept.refitted)


def _normal(cohort: Cohort) -> np.ndarray:
    rows = np.flatnonzero(cohort.targets[:, 0] == 0)
    if not len(rows):
        raise SettingsError(f"{cohort.base.task.data}: no normal training slices; anomaly learns from them alone")
    return rows


def smooth(tokens: torch.Tensor) -> torch.Tensor:
    """Return (n, P, F) patches, each averaged with its up to eight neighbours and scaled to unit length."""
    count, number, width = tokens.shape
    grid = round(number**0.5)
    square = tokens.transpose(1, 2).reshape(count, width, grid, grid)
    averaged = F.avg_pool2d(square, 3, stride=1, padding=1, count_include_pad=False)
    return F.normalize(averaged.flatten(2).transpose(1, 2), dim=2)


def fill(cohort: Cohort, rows: np.ndarray, config: AnomalyConfig, seed: int) -> torch.Tensor:
    """Return (M, F) patches of some slices, as many of each slice, drawn at random."""
    generator = np.random.default_rng(seed)
    each = max(1, -(-config.memory // len(rows)))
    found = []
    for row in rows:
        tokens = smooth(cohort.patches(np.array([row]), _LAST))[0]
        found.append(tokens[np.sort(generator.permutation(len(tokens))[:each])])
    memory = torch.cat(found)
    return memory[np.sort(generator.permutation(len(memory))[: config.memory])]


def distances(memory: torch.Tensor, cohort: Cohort, neighbours: list[int]) -> dict[int, np.ndarray]:
    """Return for each number of neighbours the (N, P) mean distance of a patch to that many nearest of the memory."""
    most, shape = max(neighbours), (len(cohort), cohort.stored_patches.shape[1])
    found = {number: np.empty(shape, np.float32) for number in neighbours}
    for row in range(len(cohort)):
        similarity = smooth(cohort.patches(np.array([row]), _LAST))[0] @ memory.T
        nearest = similarity.topk(min(most, len(memory)), dim=1).values
        apart = (2 - 2 * nearest).clamp(min=0).sqrt()
        for number in neighbours:
            found[number][row] = apart[:, :number].mean(dim=1).numpy()
    return found


def slice_scores(maps: np.ndarray, top: float) -> np.ndarray:
    """Return (N,) the mean of the highest share `top` of each slice's patches, of the highest one at least."""
    count = max(1, round(maps.shape[1] * top))
    return np.sort(maps, axis=1)[:, -count:].mean(axis=1)


def edges_of(maps: np.ndarray) -> np.ndarray:
    """Return (B − 1,) edges of bins that hold about equally many scores of patches."""
    return np.unique(np.quantile(maps, np.linspace(0, 1, _BINS + 1)[1:-1]))


def pixel_counts(maps: np.ndarray, test: Cohort, edges: np.ndarray) -> Binned:
    """Return scores of pixels against the label maps, in cells of a quarter of a patch, counted in bins by patient.

    maps (N, P) scores of patches, or (D, N, P) of several fits; edges (B − 1,) of the bins
    """
    fits = maps if maps.ndim == 3 else maps[None]
    grid, examples = round(fits.shape[2] ** 0.5), test.examples
    truth = test.maps(grid * _PIXELS)
    patients, which = np.unique(examples.subjects, return_inverse=True)
    counts = np.zeros((2, len(fits), len(patients), len(edges) + 1))
    for row in range(fits.shape[1]):
        abnormal = np.isin(truth[row].ravel(), examples.values)
        known = ~np.isin(truth[row].ravel(), examples.ignored)
        coarse = torch.from_numpy(fits[:, row]).view(len(fits), 1, grid, grid)
        fine = F.interpolate(coarse, scale_factor=_PIXELS, mode="bilinear", align_corners=False)
        for fit, values in enumerate(fine.flatten(1).numpy()):
            places = np.searchsorted(edges, values, side="right")
            for kind, mask in enumerate((abnormal & known, ~abnormal & known)):
                counts[kind, fit, which[row]] += np.bincount(places[mask], minlength=len(edges) + 1)
    positive, negative = counts if maps.ndim == 3 else counts[:, 0]
    return Binned("pixel_auroc", positive, negative, patients)
