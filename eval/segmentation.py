"""A linear head on patch features that draws finer than a patch.

Every patch's features are mapped linearly to a square of 2·cells output pixels a side that overlaps
its neighbours' by half and is added up: a transposed convolution with twice its stride as kernel,
without any nonlinearity. Each organ has its own sigmoid, so that a series in which an organ is
unlabelled says nothing about it, neither in the loss nor in the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data_prep.schema import Split
from eval import images, metrics
from eval.bootstrap import Overlap
from eval.config import SegmentationConfig
from eval.features import Features
from pretrain.machine import autocast

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
class Fitted:
    """The head that validation patients chose, with its learning rate and a threshold per organ."""

    head: Head
    lr: float
    thresholds: np.ndarray
    validation_dice: float


def fit(train: Features, val: Features, organs: dict[str, int], config: SegmentationConfig, seed: int) -> Fitted:
    """Train one head per learning rate; the validation patients choose it and the thresholds."""
    values = list(organs.values())
    best: Fitted | None = None
    for lr in config.lr:
        head = _train(train, values, config, lr, seed)
        per_organ = _coarse_dice(head, val, values, config)
        thresholds = np.array(config.thresholds)[per_organ.argmax(axis=0)]
        dice = float(per_organ.max(axis=0).mean())
        if best is None or dice > best.validation_dice:
            best = Fitted(head, lr, thresholds, dice)
    return best


def score(fitted: Fitted, test: Features, split: Split, organs: dict[str, int], config: SegmentationConfig) -> Overlap:
    """Dice of every test patient and organ, counted over all its slices in the slices' own pixels."""
    tally = Tally(np.unique(test.subjects), len(organs))
    values = list(organs.values())
    for rows, logits in predict(fitted.head, test, config.batch_size):
        for row, maps in zip(range(rows.start, rows.stop), logits):
            truth = images.native_labels(split[int(test.numbers[row])])
            drawn = images.to_native(maps, len(truth)).sigmoid().numpy() > fitted.thresholds[:, None, None]
            tally.add(test.subjects[row], drawn, np.stack([truth == value for value in values]), test.annotated[row])
    return Overlap(tally.dice(), tally.subjects)


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


def predict(head: Head, features: Features, batch_size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Stretches of slices and their (n, O, R, R) logits."""
    count = len(features.numbers)
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        with torch.inference_mode():
            yield rows, head(torch.from_numpy(features.patches[rows].astype(np.float32)))


def _train(train: Features, values: list[int], config: SegmentationConfig, lr: float, seed: int) -> Head:
    generator = np.random.default_rng(seed)
    sample = np.sort(generator.permutation(len(train.numbers))[:512])
    tokens = train.patches[sample].astype(np.float32).reshape(-1, train.patches.shape[2])
    std = np.maximum(tokens.std(axis=0), 1e-6)
    head = Head(
        tokens.shape[1], len(values), config.cells, torch.from_numpy(tokens.mean(axis=0)), torch.from_numpy(std)
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(train.numbers) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    precision = autocast("auto", torch.device("cpu"))
    for _ in range(config.epochs):
        order = generator.permutation(len(train.numbers))
        for start in range(0, len(order), config.batch_size):
            rows = np.sort(order[start : start + config.batch_size])
            with precision:
                logits = head(torch.from_numpy(train.patches[rows].astype(np.float32)))
            loss = masked_loss(logits, *_targets(train, rows, values))
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


def _targets(features: Features, rows: np.ndarray, values: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.from_numpy(features.labels[rows])
    targets = torch.stack([maps == value for value in values], dim=1).float()
    return targets, torch.from_numpy(features.annotated[rows])


def _coarse_dice(head: Head, features: Features, values: list[int], config: SegmentationConfig) -> np.ndarray:
    """(thresholds, O) mean Dice over the patients, on the head's own grid: enough to choose by."""
    tallies = [Tally(np.unique(features.subjects), len(values)) for _ in config.thresholds]
    for rows, logits in predict(head, features, config.batch_size):
        drawn = logits.sigmoid().numpy()
        true = _targets(features, np.arange(rows.start, rows.stop), values)[0].numpy() > 0
        for place, row in enumerate(range(rows.start, rows.stop)):
            for threshold, tally in zip(config.thresholds, tallies):
                tally.add(features.subjects[row], drawn[place] > threshold, true[place], features.annotated[row])
    means = np.stack([metrics.macro(tally.dice().T) for tally in tallies])
    return np.nan_to_num(means)  # an organ that no validation patient has labelled decides nothing
