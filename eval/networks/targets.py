"""What a network's last layer means for each kind of task: its loss, and the scores that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from eval.contract import score
from eval.data.cohorts import Cohort

Candidate = TypeVar("Candidate")

# of a segmentation: presence of structures
KINDS = ("binary", "multiclass", "multilabel", "regression", "segmentation")


@dataclass(frozen=True)
class Outputs:
    """kind as above; count of outputs; mean and std (T,) of the training targets, by which values are counted."""

    kind: str
    count: int
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, train: Cohort) -> Outputs:
        kind, known = train.base.task.kind, train.targets
        mean = np.nan_to_num(np.nanmean(known, axis=0))
        std = np.nanstd(known, axis=0)
        count = len(train.names) if kind == "multiclass" else known.shape[1]
        return cls(kind, count, mean, np.where(std > 1e-8, std, 1.0))

    def loss(self, logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
        """logits (n, count), targets (n, T) with NaN where unknown; 0 where nothing is known."""
        known = torch.from_numpy(~np.isnan(targets)).to(logits.device)
        if self.kind == "multiclass":
            classes = torch.from_numpy(np.nan_to_num(targets[:, 0], nan=-1).astype(np.int64)).to(logits.device)
            each = F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum")
        elif self.kind == "regression":
            wanted = torch.from_numpy(np.nan_to_num((targets - self.mean) / self.std)).float().to(logits.device)
            each = ((logits - wanted).square() * known).sum()
        else:
            wanted = torch.from_numpy(np.nan_to_num(targets)).float().to(logits.device)
            each = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * known).sum()
        return each / known.sum().clamp(min=1)

    def best(self, tried: Iterable[tuple[float, Candidate]], scores: Callable[[Candidate], np.ndarray], val: Cohort):
        """Of networks tried one after the other the key and the one whose scores of validation patients are best."""
        task = val.base.task
        valued = ((key, made, score(scores(made), val, task)) for key, made in tried)
        return max(valued, key=lambda each: each[-1])[:2]

    def scores(self, logits: torch.Tensor) -> np.ndarray:
        """(n, T): probabilities of labels or classes, or values."""
        if self.kind == "multiclass":
            return logits.softmax(dim=1).cpu().numpy()
        if self.kind == "regression":
            return logits.cpu().numpy() * self.std + self.mean
        return logits.sigmoid().cpu().numpy()
