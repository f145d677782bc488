"""What probes that draw structures share: the loss, the thresholds that validation chooses, the fitted probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from eval.config import DrawingConfig
from eval.contract import Choices, Context, Outcome, Parts
from eval.data import images
from eval.data.cohorts import Cohort
from eval.data.examples import Examples
from eval.data.features import Rows
from eval.networks import volume_scores
from eval.networks.volume_scores import Draw
from eval.statistics import metrics

_ROWS = 32  # slices at a time
Key = TypeVar("Key")  # what a choice is between: learning rates, numbers of neighbours
Drawer = TypeVar("Drawer", bound=Draw)


@dataclass(frozen=True)
class FittedSegmenter(Generic[Drawer]):
    """A fitted probe that draws: `maps` as volume_scores.Draw says, and the threshold of each structure (O,)."""

    maps: Drawer
    thresholds: np.ndarray
    config: DrawingConfig
    choices: Choices
    refitted: bool = False

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(volume_scores.measure(self.maps, self.thresholds, test, self.config))]

    def draw(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """Return (n, R, R) uint8: the place in `names` plus 1 of the structure furthest above its threshold, or 0."""
        size = cohort.base.task.size
        fine = torch.stack([images.to_native(each, size) for each in self.maps(cohort, rows)]).numpy()
        beyond = fine - self.thresholds[None, :, None, None]
        return np.where(beyond.max(axis=1) > 0, beyond.argmax(axis=1) + 1, 0).astype(np.uint8)


def kept(fitted: FittedSegmenter, arrays: Mapping[str, np.ndarray], **plain: Any) -> Parts:
    """Return what is kept of a probe that draws: its thresholds beside the arrays and JSON of what draws."""
    return Parts({**arrays, "thresholds": fitted.thresholds}, plain)


def restored(maps: Drawer, parts: Parts, context: Context) -> FittedSegmenter[Drawer]:
    """Return the probe that `kept` took apart; `maps` draws."""
    config = context.task.drawing
    return FittedSegmenter(maps, parts.arrays["thresholds"], config, parts.choices, parts.refitted)


def choose(maps: Draw, val: Cohort, config: DrawingConfig) -> tuple[np.ndarray, float]:
    """Return the best threshold of each structure (O,) on the validation patients, and their mean Dice with it.

    Counted on the grid that `maps` draws on: enough to choose by.
    """
    examples = val.examples
    truth: Rows | None = None
    tallies = [PixelCounts(np.unique(examples.subjects), len(examples.values)) for _ in config.thresholds]
    for start in range(0, len(val.rows), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(val.rows)))
        drawn = maps(val, rows)
        truth = val.maps(drawn.shape[-1]) if truth is None else truth
        wanted = targets(truth[rows], examples)
        true, known = wanted > 0, ~wanted.isnan()
        for threshold, tally in zip(config.thresholds, tallies):
            tally.add(examples.subjects[rows], (drawn > threshold) & known, true, examples.annotated[rows])
    # a structure that no validation patient has labelled decides nothing
    means = np.stack([np.nan_to_num(metrics.macro(tally.dice().T)) for tally in tallies])
    return np.array(config.thresholds)[means.argmax(axis=0)], float(means.max(axis=0).mean())


def best(
    candidates: Iterable[tuple[Key, Drawer]], val: Cohort, config: DrawingConfig
) -> tuple[Key, Drawer, np.ndarray]:
    """Return the best candidate on validation patients: its key, itself, its thresholds (O,).

    candidates  are tried, and may be made, one after the other
    """
    scored = ((key, maps, *choose(maps, val, config)) for key, maps in candidates)
    return max(scored, key=lambda each: each[-1])[:3]


class PixelCounts:
    """Counts of pixels by patient and structure; a structure that is unlabelled in a study is not counted there."""

    def __init__(self, subjects: np.ndarray, structures: int) -> None:
        self.subjects = subjects
        self.counts = np.zeros((3, len(subjects), structures))
        self.known = np.zeros((len(subjects), structures), bool)

    def add(self, subjects: np.ndarray, drawn: torch.Tensor, true: torch.Tensor, annotated: np.ndarray) -> None:
        """Count n slices of `subjects`: drawn, true (n, O, h, w) bool, annotated (n, O) bool."""
        places = np.searchsorted(self.subjects, subjects)
        sums = torch.stack([each.sum(dim=(2, 3)) for each in (drawn & true, drawn, true)]).cpu().numpy()
        for counts, each in zip(self.counts, sums * annotated):
            np.add.at(counts, places, each)
        np.logical_or.at(self.known, places, annotated)

    def dice(self) -> np.ndarray:
        """Return (patients, O), NaN where the structure is unlabelled."""
        return np.where(self.known, metrics.dice(*self.counts), np.nan)


def targets(maps: np.ndarray | torch.Tensor, examples: Examples) -> torch.Tensor:
    """Return (n, O, R, R) 0 or 1 from (n, R, R) label maps, NaN where nobody annotated them."""
    found = torch.as_tensor(maps)
    wanted = torch.stack([found == value for value in examples.values], dim=1).float()
    for value in examples.ignored:
        wanted.masked_fill_((found == value)[:, None], torch.nan)
    return wanted


def masked_loss(logits: torch.Tensor, targets: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus soft Dice over the labelled structures of a batch.

    logits, targets (N, O, R, R); annotated (N, O): a structure that is not labelled in a slice's series
    adds nothing to either term, nor does a pixel whose target is NaN.
    """
    known = annotated[:, :, None, None] * (~targets.isnan()).float()
    targets = targets.nan_to_num()
    entropy = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * known).mean(dim=(2, 3))
    drawn = logits.sigmoid() * known
    true = targets * known
    overlap, size = (drawn * true).sum(dim=(0, 2, 3)), (drawn + true).sum(dim=(0, 2, 3))
    soft = 1 - (2 * overlap + 1) / (size + 1)
    seen = known.any(dim=3).any(dim=2).any(dim=0).float()
    # slices whose pixels are known in part count in part
    count = known.mean(dim=(2, 3)).sum()
    return entropy.sum() / count.clamp(min=1) + (soft * seen).sum() / seen.sum().clamp(min=1)
