"""What a network's last layer means for each kind of task: its loss, and the scores that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from eval.config import Kind
from eval.contract import score
from eval.data.cohorts import Cohort

Key = TypeVar("Key")  # what a choice is between: learning rates
Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Outputs:
    """The outputs for a kind of task (of a segmentation: presence of its structures).

    count      of outputs
    mean, std  (T,) of the training targets, by which values of a regression are standardised
    """

    kind: Kind
    count: int
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, train: Cohort) -> Outputs:
        """Return the outputs for the task of some training patients."""
        kind, known = train.base.task.kind, train.targets
        mean = np.nan_to_num(np.nanmean(known, axis=0))
        std = np.nanstd(known, axis=0)
        count = len(train.names) if kind == "multiclass" else known.shape[1]
        return cls(kind, count, mean, np.where(std > 1e-8, std, 1.0))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return mean and standard deviation as they are kept."""
        return {"outputs.mean": self.mean, "outputs.std": self.std}

    @classmethod
    def kept(cls, arrays: Mapping[str, np.ndarray], kind: Kind, count: int) -> Outputs:
        """Return what `arrays` gave, of a kind of task and a number of outputs."""
        return cls(kind, count, arrays["outputs.mean"], arrays["outputs.std"])

    def loss(self, logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
        """Return the mean loss over what is known; 0 where nothing is.

        logits (n, count); targets (n, T), NaN where unknown
        """
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

    def best(
        self, candidates: Iterable[tuple[Key, Candidate]], scores: Callable[[Candidate], np.ndarray], val: Cohort
    ) -> tuple[Key, Candidate]:
        """Return the best candidate on validation patients and its key; `scores` gives its (U, T) scores of them.

        candidates  are tried, and may be made, one after the other
        """
        scored = ((key, each, score(scores(each), val, val.base.task)) for key, each in candidates)
        return max(scored, key=lambda each: each[-1])[:2]

    def scores(self, logits: torch.Tensor) -> np.ndarray:
        """Return (n, T) probabilities of labels or classes, or values."""
        if self.kind == "multiclass":
            return logits.softmax(dim=1).cpu().numpy()
        if self.kind == "regression":
            return logits.cpu().numpy() * self.std + self.mean
        return logits.sigmoid().cpu().numpy()


def probabilities(logits: torch.Tensor, exclusive: bool) -> np.ndarray:
    """Return (n, O) float64 probabilities of each label, or of classes of which one is true (`exclusive`)."""
    logits = logits.double()
    return (logits.softmax(dim=1) if exclusive else logits.sigmoid()).numpy()
