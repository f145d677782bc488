"""Logistic regression on frozen features, all organs at once, unlabelled slices left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of the training features, (D,) each; a constant channel is left as it is."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Standard:
        std = features.std(axis=0, dtype=np.float64)
        return cls(features.mean(axis=0, dtype=np.float64), np.where(std > 1e-8, std, 1.0))

    def apply(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean) / self.std).astype(np.float32)


def fit(features: np.ndarray, present: np.ndarray, l2: float, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, O) and biases (O,) by L-BFGS.

    Minimises, for every organ, the mean cross-entropy over its labelled slices plus l2 / 2 · |w|²
    (scikit-learn's C = 1 / (slices · l2)); the bias is not penalised.
    features (N, D), present (N, O) in {1, 0, −1}.
    """
    inputs, states = torch.from_numpy(features), torch.from_numpy(present)
    known, targets = (states >= 0).float(), (states == 1).float()
    share = known / known.sum(dim=0).clamp(min=1)
    weights = torch.zeros(features.shape[1], present.shape[1], requires_grad=True)
    biases = torch.zeros(present.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, biases], max_iter=steps, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        entropy = F.binary_cross_entropy_with_logits(inputs @ weights + biases, targets, reduction="none")
        loss = (entropy * share).sum() + l2 / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().numpy(), biases.detach().numpy()
