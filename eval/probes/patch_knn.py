"""Segmentation by nearest neighbours among training patches (eval.probes.patch_bank): nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from eval.config import PatchKnnConfig, TaskConfig
from eval.contract import Context, Parts
from eval.data.cohorts import Cohort
from eval.networks import segmentation, state
from eval.networks.decoders import Standardise
from eval.networks.frozen_decoder import standardised
from eval.networks.segmentation import FittedSegmenter
from eval.probes import patch_bank
from eval.probes.patch_bank import PatchBank

_LAST = (-1,)  # the block whose patches are read
_BATCH = 64  # slices
_CHOOSERS = 300  # validation slices by which k is chosen: a choice among three needs no more


@dataclass(frozen=True)
class PatchVoter:
    """A bank and the k that draws; calling it draws (see volume_scores.Draw)."""

    bank: PatchBank
    standardise: Standardise
    k: int
    config: PatchKnnConfig

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        patches = self.standardise(cohort.patches(rows, _LAST))
        side = round(patches.shape[1] ** 0.5)
        return self.bank.draw(patches, (side, side), [self.k], self.config.temperature)[0]


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Return the last one."""
    return _LAST


def fit(train: Cohort, val: Cohort, context: Context) -> FittedSegmenter[PatchVoter]:
    """Choose the best k on the validation patients. With `refit` the bank is drawn from both."""
    task, config = context.task, context.task.patch_knn
    standardise = standardised(train, _LAST, task.seed, config.cells)
    bank = collect(train, standardise, config, task.seed)
    tried = ((k, PatchVoter(bank, standardise, k, config)) for k in config.k)
    k, voter, thresholds = segmentation.best(tried, _thinned(val), task.drawing)
    if task.refit:
        bank = collect(train.plus(val), standardise, config, task.seed)
        voter = PatchVoter(bank, standardise, k, config)
    choices = {"k": k, "thresholds": dict(zip(train.names, thresholds.tolist()))}
    return FittedSegmenter(voter, thresholds, task.drawing, choices, task.refit)


def parts(fitted: FittedSegmenter[PatchVoter]) -> Parts:
    """Return what is kept of it: the bank, standardisation, thresholds."""
    bank = fitted.maps.bank
    arrays = {f"bank.{name}": getattr(bank, name).numpy() for name in ("tokens", "drawn", "annotated")}
    arrays |= state.arrays(fitted.maps.standardise, "standardise")
    return segmentation.kept(fitted, arrays, cells=bank.cells)


def restore(kept: Parts, context: Context) -> FittedSegmenter[PatchVoter]:
    """Return what `parts` took apart."""
    names = ("tokens", "drawn", "annotated")
    tokens, drawn, annotated = (torch.from_numpy(np.array(kept.arrays[f"bank.{name}"])) for name in names)
    bank = PatchBank(tokens, drawn, annotated, kept.plain["cells"])
    voter = PatchVoter(bank, state.standardise(kept.arrays), kept.choices["k"], context.task.patch_knn)
    return segmentation.restored(voter, kept, context)


def collect(train: Cohort, standardise: Standardise, config: PatchKnnConfig, seed: int) -> PatchBank:
    """Return a bank of the training patches."""
    count, examples = len(train.rows), train.examples
    side = round(train.patches(np.arange(1), _LAST).shape[1] ** 0.5)
    maps = train.maps(side * config.cells)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for start in range(0, count, _BATCH):
            rows = np.arange(start, min(start + _BATCH, count))
            structures = segmentation.targets(maps[rows], examples)  # NaN where nobody annotated
            yield standardise(train.patches(rows, _LAST)), structures, torch.from_numpy(examples.annotated[rows])

    return patch_bank.collect(batches(), count * side * side, config.bank, config.cells, seed)


def _thinned(val: Cohort) -> Cohort:
    """Return every n-th slice of all patients, about _CHOOSERS of them."""
    step = max(1, len(val.rows) // _CHOOSERS)
    return Cohort(val.name, val.base, val.rows[::step])
