"""A linear head on patch features that draws finer than a patch.

Every patch's features are mapped linearly to a square of 2·cells output pixels a side that overlaps
its neighbours' by half and is added up: a transposed convolution with twice its stride as kernel,
without any nonlinearity. Each organ has its own sigmoid, so that a series in which an organ is
unlabelled says nothing about it, neither in the loss nor in the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from eval import images, metrics
from eval.config import SegmentationConfig
from eval.parts import Part
from eval.predictions import Tabled
from eval.probes import Context, Outcome
from pretrain.machine import autocast

KINDS = ("segmentation",)
NEEDS = "patches"

_PRIOR = -4.0  # first bias: an organ covers about two per cent of an image


class Head(nn.Module):
    """(N, P, F) patch features → (N, O, R, R) logits, R = √P · cells. Features are standardised first."""

    def __init__(self, width: int, organs: int, cells: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.organs, self.cells = organs, cells
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.map = nn.Linear(width, organs * (2 * cells) ** 2, bias=False)
        nn.init.zeros_(self.map.weight)
        self.bias = nn.Parameter(torch.full((organs,), _PRIOR))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        grid, cells = round(patches.shape[1] ** 0.5), self.cells
        squares = self.map((patches - self.mean) / self.std).float().transpose(1, 2)
        added = F.fold(squares, grid * cells, kernel_size=2 * cells, stride=cells, padding=cells // 2)
        return added + self.bias.view(1, -1, 1, 1)


@dataclass(frozen=True)
class Drawing:
    """The head that validation patients chose, with its learning rate and a threshold per structure."""

    head: Head
    config: SegmentationConfig
    thresholds: np.ndarray
    choices: dict
    refitted: bool = False

    def predict(self, test: Part) -> list[Outcome]:
        return [Outcome(score(self, test))]

    def draw(self, part: Part, rows: np.ndarray) -> np.ndarray:
        """(n, R, R) uint8: the place in `names` plus 1 of the structure that is furthest above its threshold, or 0."""
        with torch.inference_mode():
            logits = self.head(torch.from_numpy(part.features.patches[rows].astype(np.float32)))
        size = part.base.task.size
        fine = torch.stack([images.to_native(each, size) for each in logits]).sigmoid().numpy()
        beyond = fine - self.thresholds[None, :, None, None]
        return np.where(beyond.max(axis=1) > 0, beyond.argmax(axis=1) + 1, 0).astype(np.uint8)


def fit(train: Part, val: Part, context: Context) -> Drawing:
    """Train one head per learning rate; the validation patients choose it and the thresholds.

    With `refit` the chosen head is trained again on both; the thresholds stay.
    """
    config, seed, best = context.task.segmentation, context.task.seed, None
    for lr in config.lr:
        head = _train(train, config, lr, seed)
        per_organ = _coarse_dice(head, val, config)
        thresholds = np.array(config.thresholds)[per_organ.argmax(axis=0)]
        dice = float(per_organ.max(axis=0).mean())
        if best is None or dice > best[0]:
            best = dice, lr, head, thresholds
    _, lr, head, thresholds = best
    if context.task.refit:
        head = _train(train.plus(val), config, lr, seed)
    choices = {"lr": lr, "thresholds": dict(zip(train.names, thresholds.tolist()))}
    return Drawing(head, config, thresholds, choices, context.task.refit)


def score(fitted: Drawing, test: Part) -> Tabled:
    """Dice and IoU of every test patient and structure, counted over all its slices in the slices' own pixels."""
    examples = test.examples
    tally = Tally(np.unique(examples.subjects), len(examples.values))
    for rows, logits in predict(fitted.head, test, fitted.config.batch_size):
        for row, maps in zip(range(rows.start, rows.stop), logits):
            truth = images.native_labels(examples.read(row))
            drawn = images.to_native(maps, len(truth)).sigmoid().numpy() > fitted.thresholds[:, None, None]
            true = np.stack([truth == value for value in examples.values])
            tally.add(examples.subjects[row], drawn, true, examples.annotated[row])
    return Tabled({"dice": tally.dice()[None], "iou": tally.iou()[None]}, tally.subjects, test.names)


class Tally:
    """Counts of pixels by patient and organ; an organ that is unlabelled in a series is not counted there."""

    def __init__(self, subjects: np.ndarray, organs: int) -> None:
        self.subjects = subjects
        self.counts = np.zeros((3, len(subjects), organs))
        self.known = np.zeros((len(subjects), organs), bool)

    def add(self, subject: str, drawn: np.ndarray, true: np.ndarray, annotated: np.ndarray) -> None:
        """drawn, true (O, h, w) bool, annotated (O,) bool of one slice."""
        place = int(np.searchsorted(self.subjects, subject))
        sums = [part.sum(axis=(1, 2)) for part in (drawn & true, drawn, true)]
        self.counts[:, place] += np.stack(sums) * annotated
        self.known[place] |= annotated

    def dice(self) -> np.ndarray:
        """(patients, O), NaN where the organ is unlabelled."""
        return np.where(self.known, metrics.dice(*self.counts), np.nan)

    def iou(self) -> np.ndarray:
        """(patients, O), NaN where the organ is unlabelled."""
        return np.where(self.known, metrics.iou(*self.counts), np.nan)


def predict(head: Head, part: Part, batch_size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Stretches of slices and their (n, O, R, R) logits."""
    count, patches = len(part.rows), part.features.patches
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        with torch.inference_mode():
            yield rows, head(torch.from_numpy(patches[rows].astype(np.float32)))


def _side(part: Part, config: SegmentationConfig) -> int:
    """Pixels of the head's output."""
    return round(part.features.patches.shape[1] ** 0.5) * config.cells


def _train(train: Part, config: SegmentationConfig, lr: float, seed: int) -> Head:
    generator, patches, count = np.random.default_rng(seed), train.features.patches, len(train.rows)
    maps = train.maps(_side(train, config))
    sample = np.sort(generator.permutation(count)[:512])
    tokens = patches[sample].astype(np.float32).reshape(-1, patches.shape[2])
    std = np.maximum(tokens.std(axis=0), 1e-6)
    head = Head(
        tokens.shape[1], len(train.names), config.cells, torch.from_numpy(tokens.mean(axis=0)), torch.from_numpy(std)
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-count // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    precision = autocast("auto", torch.device("cpu"))
    for _ in range(config.epochs):
        order = generator.permutation(count)
        for start in range(0, len(order), config.batch_size):
            rows = np.sort(order[start : start + config.batch_size])
            with precision:
                logits = head(torch.from_numpy(patches[rows].astype(np.float32)))
            annotated = torch.from_numpy(train.examples.annotated[rows])
            loss = masked_loss(logits, _targets(maps[rows], train.examples.values), annotated)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def masked_loss(logits: torch.Tensor, targets: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the labelled organs of a batch.

    logits, targets (N, O, R, R); annotated (N, O): an organ that is not labelled in a slice's series
    adds nothing to either term.
    """
    known = annotated[:, :, None, None].float()
    entropy = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * known).mean(dim=(2, 3))
    drawn = logits.sigmoid() * known
    true = targets * known
    overlap, size = (drawn * true).sum(dim=(0, 2, 3)), (drawn + true).sum(dim=(0, 2, 3))
    soft = 1 - (2 * overlap + 1) / (size + 1)
    seen = annotated.any(dim=0).float()
    return entropy.sum() / annotated.sum().clamp(min=1) + (soft * seen).sum() / seen.sum().clamp(min=1)


def _targets(maps: np.ndarray, values: Sequence[int]) -> torch.Tensor:
    """(n, O, R, R) 0 or 1 from (n, R, R) label maps."""
    found = torch.from_numpy(maps)
    return torch.stack([found == value for value in values], dim=1).float()


def _coarse_dice(head: Head, val: Part, config: SegmentationConfig) -> np.ndarray:
    """(thresholds, O) mean Dice over the patients, on the head's own grid: enough to choose by."""
    examples, maps = val.examples, val.maps(_side(val, config))
    tallies = [Tally(np.unique(examples.subjects), len(examples.values)) for _ in config.thresholds]
    for rows, logits in predict(head, val, config.batch_size):
        drawn = logits.sigmoid().numpy()
        true = _targets(maps[rows], examples.values).numpy() > 0
        for place, row in enumerate(range(rows.start, rows.stop)):
            for threshold, tally in zip(config.thresholds, tallies):
                tally.add(examples.subjects[row], drawn[place] > threshold, true[place], examples.annotated[row])
    means = np.stack([metrics.macro(tally.dice().T) for tally in tallies])
    return np.nan_to_num(means)  # an organ that no validation patient has labelled decides nothing
